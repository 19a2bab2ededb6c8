"""Real models as lists of shapes: what an optimizer sees of them."""

import itertools


def resnet50():
    """The 161 tensors of ResNet-50 (He et al.

    2016), 25.6 M elements: 53 convolutions, a scale and a shift for each, one dense layer.
    """

    def convolution(fan_in, fan_out, kernel):
        return [(fan_out, fan_in, kernel, kernel), (fan_out,), (fan_out,)]

    shapes = convolution(3, 64, 7)
    fan_in = 64
    for width, blocks in ((64, 3), (128, 4), (256, 6), (512, 3)):
        for block in range(blocks):
            shapes += (
                convolution(fan_in, width, 1)
                + convolution(width, width, 3)
                + convolution(width, 4 * width, 1)
            )
            if block == 0:
                shapes += convolution(fan_in, 4 * width, 1)  # the shortcut
            fan_in = 4 * width
    return [*shapes, (1000, 2048), (1000,)]


def gpt2(layers=12, width=768, vocabulary=50257, positions=1024):
    """The 148 tensors of GPT-2 small (Radford et al.

    2019), 124 M elements, the output layer being the token embedding.
    """
    norm = [(width,), (width,)]
    attention = [(width, 3 * width), (3 * width,), (width, width), (width,)]
    mlp = [(width, 4 * width), (4 * width,), (4 * width, width), (width,)]
    return [(vocabulary, width), (positions, width), *(norm + attention + norm + mlp) * layers, *norm]


def embeddings(width=32):
    """A recommender's 38 tensors, 57 M elements.

    They are 26 embedding tables of 3 to 700,000 rows, and two small perceptrons.

    The proportions are those of DLRM (Naumov et al. 2019) on Criteo's data: a few tables hold nearly
    everything."""
    large = [700_000, 500_000, 300_000, 150_000, 70_000, 30_000, 10_000, 5_000, 2_000, 1_000]
    small = [500, 300, 200, 150, 100, 100, 60, 30, 20, 15, 10, 10, 5, 4, 3, 3]
    shapes = [(count, width) for count in large + small]
    for sizes in ((13, 512, 256, width), (383, 512, 256, 1)):
        for fan_in, fan_out in itertools.pairwise(sizes):
            shapes += [(fan_out, fan_in), (fan_out,)]
    return shapes


MODELS = {"resnet50": resnet50, "gpt2": gpt2, "embeddings": embeddings}
