"""What a prompt and a notebook show of parameterizations and denoisers."""

import math
from html.parser import HTMLParser

import pytest
import torch
from torch import Tensor, nn

import testbed
from testbed import notebook


class Cells(HTMLParser):
    """The texts of the cells, as a browser reads them."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[str] = []
        self.open: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.open.append(tag)
        if tag in ("td", "th"):
            self.found.append("")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] in ("td", "th"):
            self.found[-1] += data


def test_a_table_holds_any_text() -> None:
    texts = ["a<b>", "&amp;", '"quoted"', "σ²"]
    read = Cells(notebook.table(texts, [texts, texts], "<caption>"))
    assert read.found == texts * 3
    assert read.open == []


@pytest.mark.parametrize("name", ["eps", "v", "edm", "x0", "score", "flow"])
def test_a_parameterization_shows_its_coefficients(bundled: testbed.Registry, name: str) -> None:
    p = bundled.parameterization(name)
    assert len(repr(p)) < 150
    assert repr(p).startswith(f"<Parameterization {name!r}")
    cells = Cells(p._repr_html_()).found
    assert cells[:5] == ["sigma", "c_skip", "c_out", "c_in", "c_noise"]
    numbers = [float(cell) for cell in cells[5:]]
    for sigma, skip, out, *_ in zip(*[iter(numbers)] * 5, strict=True):
        # As the papers print them, at sigma_data = 1 and four digits.
        expected = {
            "eps": (1.0, -sigma),
            "v": (1 / (1 + sigma**2), -sigma / math.sqrt(1 + sigma**2)),
            "edm": (1 / (1 + sigma**2), sigma / math.sqrt(1 + sigma**2)),
            "x0": (0.0, 1.0),
            "score": (1.0, sigma**2),
            "flow": (1 / (1 + sigma), -sigma / (1 + sigma)),
        }[name]
        assert (skip, out) == pytest.approx(expected, rel=5e-4)


def test_options_stand_in_the_line(bundled: testbed.Registry) -> None:
    def scaling(sigma: Tensor, shift: float = 0.5) -> testbed.Coefficients:
        one = torch.ones_like(sigma)
        return testbed.Coefficients(0 * one, one + shift, one, sigma)

    p = testbed.Parameterization("shifted", scaling).bound({"shift": 0.25})
    assert repr(p) == "<Parameterization 'shifted', shift = 0.25>"


def test_what_is_not_affine_has_no_coefficients() -> None:
    p = testbed.Parameterization(
        "bent", target=lambda x0, eps: x0**3, denoise=lambda F: F.sign() * F.abs() ** (1 / 3)
    )
    assert "not affine" in p._repr_html_()


def test_a_denoiser_is_one_line_and_a_table(bundled: testbed.Registry) -> None:
    class Network(nn.Linear):
        def forward(self, x: Tensor, c_noise: Tensor, condition: object = None) -> Tensor:
            return super().forward(x)

    denoiser = testbed.Denoiser(Network(2, 2), bundled.parameterization("v"), 0.5)
    assert repr(denoiser) == "<Denoiser: v around Network (6 parameters), sigma_data = 0.5>"
    cells = Cells(denoiser._repr_html_()).found
    assert dict(zip(cells[::2], cells[1::2], strict=True))["parameters"] == "6"
