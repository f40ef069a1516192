"""Makes metrics.safetensors: small image pairs and what scikit-image says about them.

    python3 tests/vectors/make_metrics.py          (NumPy, SciPy, scikit-image, safetensors)

Tensors of a case: NAME.reference, NAME.test [k, j, i] (i fastest, as in a NIfTI file), NAME.mask where there is one,
NAME.expected: PSNR, mean PSNR of the slices, SSIM (Wang), SSIM (scikit-image's default), NRMSE, slices left out.
Slices are those of the last axis.
"""
import pathlib
import sys

import numpy as np
import scipy.ndimage
from safetensors.numpy import save_file
from skimage.metrics import normalized_root_mse, peak_signal_noise_ratio, structural_similarity

HERE = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent.parent / "weights" / "train"))
from scaling import scale_numbers  # noqa: E402


def expected(reference, test, mask):
    reference, test = reference.astype(np.float64), test.astype(np.float64)
    lo, hi, mean = scale_numbers(reference)
    x, y = (reference - lo) / (hi - lo), (test - lo) / (hi - lo)
    inside = np.ones(x.shape, bool) if mask is None else mask > 0.5
    psnr, ssim, ssim7, left_out = [], [], [], 0
    for s in range(x.shape[0]):
        a, b, m = x[s], y[s], inside[s]
        if not (reference[s] > mean).any() or not m.any():
            left_out += 1
            continue
        psnr.append(peak_signal_noise_ratio(a[m], b[m], data_range=1))
        _, wang = structural_similarity(a, b, data_range=1, gaussian_weights=True, sigma=1.5,
                                        use_sample_covariance=False, full=True)
        _, uniform = structural_similarity(a, b, data_range=1, full=True)
        if not m[5:-5, 5:-5].any():
            left_out += 1
            continue
        ssim.append(wang[5:-5, 5:-5][m[5:-5, 5:-5]].mean())
        ssim7.append(uniform[3:-3, 3:-3][m[3:-3, 3:-3]].mean())
    return [peak_signal_noise_ratio(x[inside], y[inside], data_range=1), np.mean(psnr), np.mean(ssim), np.mean(ssim7),
            normalized_root_mse(x[inside], y[inside], normalization="euclidean"), left_out]


def main():
    rng = np.random.default_rng(11)
    grid = np.stack(np.meshgrid(*[np.linspace(-1, 1, n) for n in (7, 29, 34)], indexing="ij"))
    head = (np.sqrt((grid ** 2).sum(0)) < 0.9) * (0.4 + 0.6 * scipy.ndimage.gaussian_filter(rng.random((7, 29, 34)), 1) ** 0.5)
    noisy = head + 0.05 * rng.standard_normal(head.shape)
    mask = (np.abs(grid[0]) < 0.5) & (np.hypot(grid[1], grid[2]) < 0.6)
    cases = {
        "volume": (900 * head, 900 * noisy, None),
        "blurred": (head, scipy.ndimage.gaussian_filter(head, (0, 1.0, 1.0)), None),
        "masked": (900 * head, 900 * noisy, mask),
        "signed": (head - 0.8, 1.1 * noisy - 0.8, None),
        "slice": (head[3:4], noisy[3:4], None),
    }
    tensors = {}
    for name, (reference, test, m) in cases.items():
        reference, test = reference.astype(np.float32), test.astype(np.float32)
        tensors[name + ".reference"] = reference
        tensors[name + ".test"] = test
        if m is not None:
            m = m.astype(np.float32)
            tensors[name + ".mask"] = m
        tensors[name + ".expected"] = np.array(expected(reference, test, m), np.float32)
        print(name, tensors[name + ".expected"])
    save_file({k: np.ascontiguousarray(v) for k, v in tensors.items()}, HERE / "metrics.safetensors")


if __name__ == "__main__":
    main()
