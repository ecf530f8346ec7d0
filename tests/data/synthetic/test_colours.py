import numpy as np
import pytest

from fedsim.data.synthetic.colours import COLOURS, colour_names, main_colours


@pytest.mark.parametrize(
    ("rgb", "name"),
    [
        ((0, 0, 0), "black"),
        ((40, 50, 60), "black"),
        ((128, 128, 128), "grey"),
        ((255, 255, 255), "white"),
        ((230, 235, 225), "white"),
        ((221, 46, 68), "red"),
        ((255, 140, 0), "orange"),
        ((139, 69, 19), "brown"),
        ((255, 204, 77), "yellow"),
        ((255, 255, 0), "yellow"),
        ((60, 170, 60), "green"),
        ((0, 0, 255), "blue"),
        ((85, 172, 238), "blue"),
        ((128, 0, 200), "purple"),
        ((255, 150, 180), "pink"),
        ((240, 0, 160), "pink"),
    ],
)
def test_names_of_colours(rgb: tuple[int, int, int], name: str) -> None:
    assert COLOURS[int(colour_names(np.array(rgb, np.uint8)))] == name


def test_a_picture_has_the_colour_of_most_visible_pixels() -> None:
    pictures = np.zeros((3, 1, 10, 4), np.uint8)
    pictures[..., :3], pictures[..., 3] = (255, 0, 0), 255
    pictures[0, 0, 6:, :3] = (0, 0, 255)  # six of ten are red
    pictures[1, 0, 5:, :3] = (0, 0, 255)  # five are not enough
    pictures[2, 0, :6, 3] = 127  # only the four blue ones can be seen
    pictures[2, 0, 6:, :3] = (0, 0, 255)
    wanted = [COLOURS.index("red"), -1, COLOURS.index("blue")]
    assert main_colours(pictures).tolist() == wanted


def test_an_empty_picture_has_no_colour() -> None:
    assert main_colours(np.zeros((1, 4, 4, 4), np.uint8)).tolist() == [-1]
