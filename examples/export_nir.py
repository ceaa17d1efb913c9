"""Export a network to NIR, and run the file with snnTorch's neurons: the same spikes, one by one.

pip install nir snntorch
python examples/export_nir.py

Without snnTorch, plain torch runs the file.
"""

import importlib.util

import s_resnet

TIMESTEPS = 16


def main() -> None:
    data = s_resnet.data.open_data("digits", "calibration")
    s_resnet.train("cifar_resnet8", data, "ann.pt", s_resnet.Training(epochs=6, width=8))
    model = s_resnet.load_checkpoint("ann.pt").model
    chosen, how = s_resnet.data.choose(data, 256), s_resnet.data.preprocessing_for(8)
    loader = s_resnet.data.ImageLoader(data, chosen, how, batch_size=64)

    # No layer waits in this recipe, so NIR can express it; on the grid every engine has the same spikes.
    recipe = s_resnet.RECIPES["calibrated-constant"].at(TIMESTEPS).with_weights("dyadic")
    snn = s_resnet.convert(model, loader, recipe)
    s_resnet.export.export_nir(snn, "network.nir")

    engine = "snntorch" if importlib.util.find_spec("snntorch") else "nir"
    images, _ = next(iter(loader))
    found = s_resnet.export.verify_export("network.nir", snn, images, timesteps=TIMESTEPS, engine=engine)
    print(found.table())


if __name__ == "__main__":
    main()
