"""Convert a module of your own: one ReLU module that is used twice, a functional ReLU, and a scaled branch.

python examples/own_module.py

The network is not trained here, so ``convert`` warns that it has almost no confidence in its answers.
"""

import torch
from torch import Tensor, nn

import s_resnet


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.conv1, self.conv2 = nn.Conv2d(16, 16, 3, padding=1), nn.Conv2d(16, 16, 3, padding=1)
        self.relu = nn.ReLU()
        self.fc = nn.Linear(16, 10)

    def forward(self, images: Tensor) -> Tensor:
        x = self.relu(self.stem(images))
        branch = self.conv2(torch.relu(self.conv1(x)))
        return self.fc(self.relu(x + 0.5 * branch).mean((2, 3)))


class Squashed(Net):
    def forward(self, images: Tensor) -> Tensor:
        return torch.sigmoid(super().forward(images))


def main() -> None:
    torch.manual_seed(0)
    model, images = Net().eval(), torch.rand(8, 3, 16, 16)  # your trained network and its images

    snn = s_resnet.convert(model, [images], timesteps=16)
    print([node.name for node in snn.neurons])  # a neuron layer for each call of a ReLU

    analog = (snn.run(images) - model(images)).abs().max()  # the ANN is in the same file
    print(f"analog run against the module: {analog:.1e}")
    spiking = (snn(images, timesteps=16) - model(images)).abs().max()
    print(f"16 time steps against the module: {spiking:.1e}")

    try:
        s_resnet.convert(Squashed().eval(), [images])
    except s_resnet.errors.UnsupportedModel as error:
        print(f"refused: {error}")


if __name__ == "__main__":
    main()
