"""Convert a torchvision ResNet-18, and see what each number of time steps costs.

python examples/convert_torchvision.py

The network first learns handwritten digits, in a few seconds. With a checkpoint of your own, write
``model = s_resnet.load_checkpoint("resnet18.pth").model`` instead.
"""

import torch
import torchvision
from torch import Tensor, nn

import s_resnet

PIXELS, TIMESTEPS = 8, 8


def train(model: nn.Module, images: Tensor, labels: Tensor, epochs: int) -> None:
    optimizer = torch.optim.Adam(model.parameters(), lr=0.001)
    for _ in range(epochs):
        for batch in torch.randperm(len(images)).split(64):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(images[batch]), labels[batch]).backward()
            optimizer.step()


def loader(split: str) -> s_resnet.data.ImageLoader:
    data = s_resnet.data.open_data("digits", split)
    chosen = s_resnet.data.choose(data, 512)  # a seeded choice over all classes
    return s_resnet.data.ImageLoader(data, chosen, s_resnet.data.preprocessing_for(PIXELS), batch_size=64)


def main() -> None:
    torch.manual_seed(0)
    calibration, test = loader("calibration"), loader("evaluation")
    model = torchvision.models.resnet18(num_classes=10)
    images, labels = (torch.cat(parts) for parts in zip(*calibration, strict=True))
    train(model, images, labels, epochs=6)

    snn = s_resnet.convert(model.eval(), calibration, timesteps=TIMESTEPS)  # the model is not changed
    print(snn)
    print(s_resnet.evaluate(snn, test, timesteps=TIMESTEPS, at=[2, 4, TIMESTEPS]).table())
    s_resnet.save(snn, "digits.snn")  # with the ANN: `sresnet evaluate digits.snn --data digits` reads it


if __name__ == "__main__":
    main()
