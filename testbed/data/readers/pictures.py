"""Encoded pictures (PNG, JPEG, WebP, ...) as an array: decoded by Pillow, brought to one form.

What is done, and said in notes:

- palettes become colours, and other spaces of colour become RGB;
- transparent pictures are laid on white, unless `colour` is "rgba";
- grey ones become colours where some have colours, and keep one channel where none has;
- grey ones of 16 bits keep them; Pillow reads colours of 16 bits as 8;
- photos are turned as their EXIF orientation says, and of an animation the first frame is taken.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from testbed.data import decoded as copies
from testbed.errors import InputError, one_line

if TYPE_CHECKING:
    from PIL.Image import Image

Colour = Literal["auto", "grey", "rgb", "rgba"]
MODES = {"grey": "L", "rgb": "RGB", "rgba": "RGBA"}
GREY = ("1", "L", "LA", "La", "I", "I;16", "I;16B", "I;16L", "I;16N")
DEEP = ("I", "I;16", "I;16B", "I;16L", "I;16N")
"""The modes of Pillow for grey pictures of 16 bits; "I" is its older one."""
TURNED = ("JPEG", "MPO", "TIFF", "WEBP")
"""The formats of photos, whose orientation is looked at."""
ORIENTATION = 0x0112
BLOCK = 256
"""Pictures that are decoded in one piece."""


class Fit(NamedTuple):
    """What pictures are made to have in common.

    Args:
        size: (height, width) that each is resampled to by Lanczos' filter; None keeps theirs, which
            must agree.
        crop: whether the largest centred part of that aspect is cut out first, or it is stretched.
        colour: "grey", "rgb" or "rgba"; "auto" is grey where all of them are grey.
    """

    size: tuple[int, int] | None = None
    crop: bool = True
    colour: Colour = "auto"


class _Header(NamedTuple):
    """What is known of a picture before it is decoded."""

    size: tuple[int, int]
    grey: bool
    deep: bool
    palette: bool
    alpha: bool
    cut: bool
    turned: bool
    frames: bool


@dataclass(frozen=True, eq=False)
class Pictures:
    """Encoded pictures as rows (N, height, width, channels), each decoded when it is indexed.

    Args:
        titles: the name of each in a message, for example its path.
        read: opens the file, or the bytes, of a number.
        files: what they come from, for the key of the decoded copy.
        part: which of the pictures of these files they are, for that key too.
        where: what they are together, in a sentence.
    """

    titles: Sequence[str]
    read: Callable[[int], BinaryIO]
    files: Sequence[Path]
    part: str
    where: str

    @property
    def shape(self) -> tuple[int, ...]:
        """(N, height, width, channels), by the first one alone."""
        if not self.titles:
            return (0, 0, 0, 0)
        header = self._header(0)
        return (len(self.titles), *header.size, 1 if header.grey else 3)

    @property
    def dtype(self) -> np.dtype[Any]:
        """That of pictures of 8 bits."""
        return np.dtype(np.uint8)

    def __getitem__(self, rows: slice) -> NDArray[Any]:
        """These pictures, without being fitted; (n, height, width, channels)."""
        header = self._header(0)
        fit = Fit(header.size, False, "grey" if header.grey else "rgb")
        return np.stack([self._picture(i, fit, False) for i in range(len(self.titles))[rows]])

    def decoded(self, fit: Fit) -> tuple[NDArray[Any], list[str]]:
        """All of them (N, height, width, channels) uint8 or uint16, mapped from the decoded copy.

        Raises:
            InputError: a picture that cannot be decoded, by its title; pictures of different sizes
                without one that they are brought to; or none.
        """
        if not self.titles:
            raise InputError(f"{self.where}: there are no images.")
        return copies.copy(copies.key(self.files, self.part, *fit), lambda: self._decode(fit))

    def _decode(self, fit: Fit) -> copies.Blocks:
        headers = [self._header(i) for i in range(len(self.titles))]
        size = fit.size or self._one_size(headers)
        deep = {header.deep for header in headers}
        if len(deep) > 1:
            i = [header.deep for header in headers].index(True)
            raise InputError(
                f"{self.titles[i]} has 16 bits, others have 8: bring the images to one depth."
            )
        grey = all(header.grey for header in headers)
        colour = ("grey" if grey else "rgb") if fit.colour == "auto" else fit.colour
        is_deep = deep == {True}
        if is_deep and colour != "grey":
            raise InputError(f"{self.where}: images of 16 bits are grey; write colour = 'grey'.")
        to = Fit(size, fit.crop, colour)
        channels = {"grey": 1, "rgb": 3, "rgba": 4}[colour]

        def blocks() -> Iterator[NDArray[Any]]:
            n = len(self.titles)
            with ThreadPoolExecutor() as pool:
                for start in range(0, n, BLOCK):
                    which = range(start, min(start + BLOCK, n))
                    yield np.stack(list(pool.map(lambda i: self._picture(i, to, is_deep), which)))

        shape = (len(self.titles), *size, channels)
        kind = np.dtype(np.uint16 if is_deep else np.uint8)
        return shape, kind, blocks(), list(self._notes(headers, to))

    def _one_size(self, headers: Sequence[_Header]) -> tuple[int, int]:
        size = headers[0].size
        for i, header in enumerate(headers):
            if header.size != size:
                a, b = ("{} x {}".format(*one) for one in (size, header.size))
                raise InputError(
                    f"{self.titles[i]} is {b} pixels (height x width), {self.titles[0]} is {a}: "
                    "bring them to one size, as size = [height, width] of the data set 'images' "
                    "does."
                )
        return size

    def _notes(self, headers: Sequence[_Header], to: Fit) -> Iterator[str]:
        """A sentence on each thing that is done to some of the pictures."""
        count = Counter(
            name
            for one in headers
            for name, said in zip(one._fields, one, strict=True)
            if said is True
        )
        alpha = "keep it" if to.colour == "rgba" else "are laid on white"
        colourless = len(headers) - count["grey"]
        said = {
            f"with a palette are read as {to.colour}": count["palette"],
            f"with transparency {alpha}": count["alpha"],
            f"without colours are read as {to.colour}": count["grey"] * (to.colour != "grey"),
            "with colours are made grey (ITU-R 601)": colourless * (to.colour == "grey"),
            "keep their 16 bits": count["deep"],
            "of 16-bit colours are read as 8 bits": count["cut"],
            "are turned as their EXIF orientation says": count["turned"],
            "are animations, of which the first frame is taken": count["frames"],
            _fitted(to): sum(header.size != to.size for header in headers),
        }
        for what, n in said.items():
            if n:
                yield f"{self.where}: {n} of {len(headers)} images {what}."

    def _opened(self, i: int) -> Image:
        """The picture of a number, its pixels not decoded yet."""
        try:
            from PIL import Image
        except ImportError:
            raise InputError(
                "images are read by Pillow, which is missing: pip install pillow."
            ) from None
        try:
            return Image.open(self.read(i))
        except InputError:
            raise
        except Exception as problem:
            raise self._damaged(i, problem) from None

    def _damaged(self, i: int, problem: Exception) -> InputError:
        from PIL import UnidentifiedImageError

        unknown_format = isinstance(problem, UnidentifiedImageError)
        said = "Pillow knows no such format" if unknown_format else one_line(problem)
        said = said.replace(self.titles[i], "it")
        return InputError(
            f"{self.titles[i]} cannot be decoded as an image ({said}): mend or remove it."
        )

    def _header(self, i: int) -> _Header:
        with self._opened(i) as image:
            mode, tiles = image.mode, getattr(image, "tile", [])
            turned = image.format in TURNED and image.getexif().get(ORIENTATION, 1) not in (0, 1)
            size = (image.height, image.width)
            if turned and image.getexif().get(ORIENTATION, 1) >= 5:
                size = (image.width, image.height)
            if mode == "F":
                raise InputError(f"{self.titles[i]} holds real numbers: store it as an array.")
            return _Header(
                size,
                grey=mode in GREY,
                deep=mode in DEEP,
                palette=mode in ("P", "PA"),
                alpha=mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in image.info,
                cut=mode not in DEEP and any(";16" in str(tile[3]) for tile in tiles),
                turned=turned,
                frames=getattr(image, "n_frames", 1) > 1,
            )

    def _picture(self, i: int, to: Fit, deep: bool) -> NDArray[Any]:
        """One picture, (height, width, channels)."""
        from PIL import Image, ImageOps

        assert to.size is not None
        with self._opened(i) as image:
            try:
                image.load()
            except Exception as problem:
                raise self._damaged(i, problem) from None
            if image.format in TURNED:
                image = ImageOps.exif_transpose(image)
            if deep:
                image = image.convert("I")
            else:
                transparent = image.mode in ("LA", "La", "PA", "RGBA", "RGBa")
                if to.colour != "rgba" and (transparent or "transparency" in image.info):
                    image = image.convert("RGBA")
                    white = Image.new("RGBA", image.size, (255, 255, 255, 255))
                    image = Image.alpha_composite(white, image).convert("RGB")
                image = image.convert(MODES[to.colour])
            pixels = np.asarray(_resized(image, to.size, to.crop))
        if deep:
            pixels = pixels.clip(0, 65535).astype(np.uint16)
        return pixels.reshape(*to.size, -1)


def _fitted(to: Fit) -> str:
    cut = "cut to their centre and " if to.crop else ""
    assert to.size is not None
    return f"are {cut}resampled to {to.size[0]} x {to.size[1]} pixels (Lanczos)"


def _resized(image: Image, size: tuple[int, int], crop: bool) -> Image:
    """The image at (height, width), of its largest centred part of that aspect where `crop`."""
    from PIL.Image import Resampling

    height, width = size
    if image.size == (width, height):
        return image
    if crop:
        scale = min(image.width / width, image.height / height)
        across, down = max(1, round(scale * width)), max(1, round(scale * height))
        left, top = (image.width - across) // 2, (image.height - down) // 2
        image = image.crop((left, top, left + across, top + down))
    return image.resize((width, height), Resampling.LANCZOS)


def of_files(files: Iterable[Path], part: str, where: str) -> Pictures:
    """The pictures of files."""
    paths = list(files)
    return Pictures(list(map(str, paths)), lambda i: paths[i].open("rb"), paths, part, where)
