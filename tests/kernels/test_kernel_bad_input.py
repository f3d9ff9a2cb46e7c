"""Everything a caller can get wrong is a ValueError of one line: argument, given, expected."""

import numpy as np
import pytest

import kernels

PHOTO = np.zeros((8, 9, 3), np.uint8)
CROPS = np.zeros((4, 36, 8), np.float32)
FULL = np.zeros((100, 8), np.float32)
LOGITS = np.zeros((5, 6, 7), np.float32)


def read_only(array: np.ndarray) -> np.ndarray:
    array.flags.writeable = False
    return array


def misaligned(array: np.ndarray) -> np.ndarray:
    memory = np.zeros(array.nbytes + 1, np.uint8)[1:]
    return memory.view(array.dtype).reshape(array.shape)


def preprocess(photo=PHOTO, size=32, crop=16, stride=8, **more):
    return kernels.preprocess(photo, size, crop, stride, **more)


def image_and_crops(image=(1, 3, 32, 32), crops=(9, 3, 16, 16), dtype=np.float32):
    return np.zeros(image, dtype), np.zeros(crops, dtype)


ALIASED = np.zeros(9 * 3 * 16 * 16, np.float32)

BAD_PREPROCESS = [
    ({"photo": None}, "photo: got None, expected uint8 array of shape (H, W, 3)"),
    ({"photo": [[1]]}, "photo: got list, expected uint8 array of shape (H, W, 3)"),
    ({"photo": PHOTO.astype(np.float32)}, "photo: got float32 array of shape (8, 9, 3), expected uint8"),
    ({"photo": PHOTO[0]}, "photo: got uint8 array of shape (9, 3), expected uint8 array of shape (H, W, 3)"),
    ({"photo": np.zeros((8, 9, 4), np.uint8)}, "photo: got uint8 array of shape (8, 9, 4), expected"),
    (
        {"photo": PHOTO[:0]},
        "photo: got uint8 array of shape (0, 9, 3), expected uint8 array of shape (H, W, 3) with",
    ),
    ({"size": 0}, "size: got 0, expected an integer from 1 to 2147483647"),
    ({"size": -4}, "size: got -4, expected an integer from 1"),
    ({"size": 1.5}, "size: got 1.5, expected an integer"),
    ({"size": "640"}, "size: got '640', expected an integer"),
    ({"crop": 33}, "crop: got 33, expected an integer from 1 to 32"),
    ({"crop": 0}, "crop: got 0, expected an integer from 1 to 32"),
    ({"stride": 0}, "stride: got 0, expected an integer from 1"),
    ({"stride": 7}, "stride: got 7, expected a divisor of size - crop = 16"),
    ({"color": "RGB"}, 'color: got \'RGB\', expected "rgb" or "bgr" or "grey"'),
    ({"color": "grey"}, "photo: got uint8 array of shape (8, 9, 3), expected uint8 array of shape (H, W)"),
    ({"photo": PHOTO[..., 0]}, "photo: got uint8 array of shape (8, 9), expected uint8 array of shape (H, W, 3)"),
    ({"photo": PHOTO[:0, :, 0], "color": "grey"}, "photo: got uint8 array of shape (0, 9), expected"),
    ({"color": None}, "color: got None, expected"),
    ({"dtype": "float64"}, 'dtype: got \'float64\', expected "float32", "float16", "bfloat16"'),
    ({"dtype": np.float16}, "dtype: got type, expected"),
    ({"dtype": None}, "dtype: got None, expected"),
    ({"dtype": "float16", "out": image_and_crops()}, "out[0]: got float32 array of shape (1, 3, 32, 32), expected"),
    ({"out": image_and_crops(dtype=np.float16)}, "out[0]: got float16 array of shape (1, 3, 32, 32), expected float32"),
    (
        {"dtype": "bfloat16", "out": (None, np.zeros((9, 3, 16, 16), np.float16))},
        "out[1]: got float16 array of shape (9, 3, 16, 16), expected uint16",
    ),
    (
        {"dtype": "float16", "out": (misaligned(np.zeros((1, 3, 32, 32), np.float16)), None)},
        "out[0]: got a misaligned array, expected one at a multiple of 2 bytes",
    ),
    (
        {"out": np.zeros((1, 3, 32, 32), np.float32)},
        "out: got float32 array of shape (1, 3, 32, 32), expected a tuple",
    ),
    ({"size": 2**31 - 1, "crop": None}, "out[0]: got (1, 3, 2147483647, 2147483647), expected a result"),
    ({"out": (misaligned(np.zeros((1, 3, 32, 32), np.float32)), None)}, "out[0]: got a misaligned array, expected one"),
    ({"out": (None,)}, "out: got (None,), expected a tuple (image, crops)"),
    (
        {"out": image_and_crops(image=(3, 32, 32))},
        "out[0]: got float32 array of shape (3, 32, 32), expected float32",
    ),
    (
        {"out": image_and_crops(crops=(4, 3, 16, 16))},
        "out[1]: got float32 array of shape (4, 3, 16, 16), expected",
    ),
    ({"out": image_and_crops(dtype=np.float64)}, "out[0]: got float64 array of shape"),
    ({"out": (np.zeros((1, 3, 32, 64), np.float32)[..., ::2], None)}, "out[0]: got a non-contiguous array"),
    ({"out": (read_only(np.zeros((1, 3, 32, 32), np.float32)), None)}, "out[0]: got a read-only array"),
    (
        {"out": (ALIASED[:3072].reshape(1, 3, 32, 32), ALIASED.reshape(9, 3, 16, 16))},
        "out[1]: got memory that",
    ),
    (
        {"crop": None, "out": image_and_crops()},
        "out[1]: got float32 array of shape (9, 3, 16, 16), expected None",
    ),
]

BAD_MERGE = [
    ((None, None), "crop_features: got None, expected an array, because full_features is None too"),
    (
        (CROPS.astype(np.float16), FULL, 4),
        "full_features: got float32 array of shape (100, 8), expected float16",
    ),
    (
        (CROPS[0], FULL, 4),
        "crop_features: got float32 array of shape (36, 8), expected float32 array of shape (n, g*g, C)",
    ),
    ((CROPS[:, :0], FULL, 4), "crop_features: got float32 array of shape (4, 0, 8), expected"),
    ((CROPS[:3], FULL, 4), "crop_features.shape[0]: got 3, expected a square number (n = k*k crops)"),
    (
        (CROPS[:, :35].copy(), FULL, 4),
        "crop_features.shape[1]: got 35, expected a square number (g*g tokens a crop)",
    ),
    ((CROPS[..., ::2], FULL, 4), "pass np.ascontiguousarray(crop_features)"),
    ((CROPS, FULL[:, ::-1], 4), "pass np.ascontiguousarray(full_features)"),
    ((CROPS, FULL.tolist(), 4), "full_features: got list, expected float32 array of shape (G*G, C)"),
    ((CROPS, FULL[:99], 4), "full_features.shape[0]: got 99, expected a square number (G*G tokens)"),
    ((CROPS, FULL[:81], 4), "full_features: got float32 array of shape (81, 8), expected shape (100, 8)"),
    (
        (CROPS, FULL[:, :4].copy(), 4),
        "full_features: got float32 array of shape (100, 4), expected shape (100, 8)",
    ),
    ((CROPS, FULL, 3), "full_features: got float32 array of shape (100, 8), expected shape (81, 8)"),
    ((CROPS, FULL, 0), "stride: got 0, expected an integer from 1"),
    ((CROPS, None, 7), "stride: got 7, expected at most g = 6"),
    (
        (CROPS, FULL, 4, np.zeros((100, 7), np.float32)),
        "out: got float32 array of shape (100, 7), expected float32",
    ),
    ((CROPS.view(np.uint32), FULL, 4), "crop_features: got uint32 array of shape (4, 36, 8), expected float32"),
    ((np.lib.stride_tricks.as_strided(CROPS, CROPS.shape, (0, 32, 4)), FULL, 4), "crop_features: got a non-contig"),
    ((CROPS, FULL, 4, np.zeros((100, 16), np.float32)[:, ::2]), "out: got a non-contiguous array"),
    ((misaligned(CROPS), FULL, 4), "crop_features: got a misaligned array, expected one at a multiple of 4 bytes"),
    ((CROPS[::-1], FULL, 4), "crop_features: got a non-contiguous array"),
    ((np.broadcast_to(CROPS[:1], CROPS.shape), FULL, 4), "crop_features: got a non-contiguous array"),
    ((CROPS, FULL, 4, FULL), "out: got memory that another argument uses too"),
    ((None, FULL, 4, FULL), "out: got memory that another argument uses too"),
]

BAD_UPSAMPLE = [
    ((LOGITS.astype(np.float64), (4, 4)), "logits: got float64 array of shape (5, 6, 7), expected float32"),
    (
        (LOGITS[None], (4, 4)),
        "logits: got float32 array of shape (1, 5, 6, 7), expected float32 array of shape (K, h, w)",
    ),
    ((LOGITS[:0], (4, 4)), "logits: got float32 array of shape (0, 6, 7), expected"),
    ((LOGITS[:, :, :0], (4, 4)), "logits: got float32 array of shape (5, 6, 0), expected"),
    ((LOGITS[:, ::2], (4, 4)), "pass np.ascontiguousarray(logits)"),
    ((LOGITS.astype(">f4"), (4, 4)), "logits: got >f4 array of shape"),
    ((np.zeros((65536, 1, 1), np.float32), (4, 4)), "logits: got 65536, expected 1 to 65535 classes (K)"),
    ((LOGITS[:, ::-1], (4, 4)), "pass np.ascontiguousarray(logits)"),
    ((LOGITS.transpose(0, 2, 1), (4, 4)), "logits: got a non-contiguous array, expected C order or the view"),
    ((np.lib.stride_tricks.as_strided(LOGITS, LOGITS.shape, (4, 4, 4)), (4, 4)), "logits: got a non-contiguous"),
    ((LOGITS.astype(np.uint16), (4, 4)), "logits: got uint16 array of shape (5, 6, 7), expected float32"),
    ((misaligned(LOGITS), (4, 4)), "logits: got a misaligned array, expected one at a multiple of 4 bytes"),
    ((LOGITS, (4, 4), False, np.zeros((4, 8), np.uint8)[:, ::2]), "out: got a non-contiguous array"),
    ((LOGITS, (4, 4), False, np.zeros((4, 4), np.uint8)[::-1]), "out: got a non-contiguous array"),
    (
        (LOGITS, (4, 4), False, np.lib.stride_tricks.as_strided(np.zeros(7, np.uint8), (4, 4), (1, 1))),
        "out: got a non-",
    ),
    ((LOGITS, (0, 4)), "size[0]: got 0, expected an integer from 1"),
    ((LOGITS, (4, -1)), "size[1]: got -1, expected an integer from 1"),
    ((LOGITS, (4, 4.0)), "size[1]: got 4.0, expected an integer"),
    ((LOGITS, 4), "size: got 4, expected (height, width)"),
    ((LOGITS, (4, 4, 4)), "size: got (4, 4, 4), expected (height, width)"),
    (
        (LOGITS, (4, 4), False, np.zeros((4, 4), np.uint16)),
        "out: got uint16 array of shape (4, 4), expected uint8",
    ),
    (
        (LOGITS, (4, 4), True, np.zeros((4, 4), np.uint8)),
        "out: got uint8 array of shape (4, 4), expected a tuple (labels",
    ),
    (
        (LOGITS, (4, 4), True, (None, np.zeros((4, 5), np.float32))),
        "out[1]: got float32 array of shape (4, 5), expected",
    ),
    ((LOGITS, (4, 4), False, read_only(np.zeros((4, 4), np.uint8))), "out: got a read-only array"),
    ((LOGITS, (4, 4), False, (None, None)), "out: got (None, None), expected uint8 array of shape (4, 4)"),
]


def one_line(error: pytest.ExceptionInfo[ValueError], text: str) -> None:
    message = str(error.value)
    assert text in message
    assert "\n" not in message and ": got " in message and "expected" in message


@pytest.mark.parametrize(("arguments", "text"), BAD_PREPROCESS, ids=[text for _, text in BAD_PREPROCESS])
def test_preprocess(arguments, text):
    with pytest.raises(ValueError) as error:
        preprocess(**arguments)
    one_line(error, text)


@pytest.mark.parametrize(("arguments", "text"), BAD_MERGE, ids=[text for _, text in BAD_MERGE])
def test_lga_merge(arguments, text):
    with pytest.raises(ValueError) as error:
        kernels.lga_merge(*arguments)
    one_line(error, text)


@pytest.mark.parametrize(("arguments", "text"), BAD_UPSAMPLE, ids=[text for _, text in BAD_UPSAMPLE])
def test_upsample_argmax(arguments, text):
    with pytest.raises(ValueError) as error:
        kernels.upsample_argmax(*arguments)
    one_line(error, text)


def test_bfloat16_asks_for_its_bits():
    with pytest.raises(ValueError) as error:
        kernels.upsample_argmax(LOGITS, (4, 4), bfloat16=True)
    one_line(error, "logits: got float32 array of shape (5, 6, 7), expected uint16 (bfloat16 bits) array of shape")


def test_channels_first_turns_the_shape_of_out():
    with pytest.raises(ValueError) as error:
        kernels.lga_merge(CROPS, FULL, 4, np.zeros((100, 8), np.float32), channels_first=True)
    one_line(error, "out: got float32 array of shape (100, 8), expected float32 array of shape (8, 100)")
