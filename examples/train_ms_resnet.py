"""Train a small MS-ResNet as a spiking network, by surrogate gradients, and evaluate it at other numbers of steps.

python examples/train_ms_resnet.py

Run it again with more epochs, and it resumes from the checkpoint.
"""

import s_resnet


def main() -> None:
    data, test = (s_resnet.data.open_data("digits", split) for split in ("calibration", "evaluation"))
    settings = s_resnet.Training(
        epochs=8, batch_size=64, timesteps=2, width=8, optimizer="adamw", lr=0.005, schedule="constant"
    )
    trained = s_resnet.train("ms_resnet8", data, "ms8.pt", settings, test=test)
    print(f"test accuracy after {len(trained.history)} epochs: {100 * trained.history[-1]['test_top1']:.1f} %")

    checkpoint = s_resnet.load_checkpoint("ms8.pt")
    how = s_resnet.data.preprocessing_for(8)
    images = s_resnet.data.ImageLoader(test, s_resnet.data.choose(test, 200), how, batch_size=100)
    snn = s_resnet.convert(checkpoint.model, images)  # it spikes already: BatchNorm is folded, T is kept
    print(s_resnet.evaluate(snn, images, timesteps=4, at=[1, 2, 4]).table())


if __name__ == "__main__":
    main()
