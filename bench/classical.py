"""The classical restorers that bench/mixed compares with: non-local means (NLM), N4, both, and BM4D.

They get more than resmap does: the whole corrupted volume, not its few slices.  Their settings were chosen on scans
of the training split (bench/README.md).
"""
import nibabel
import numpy as np

FLAT = {"patch_size": 5, "patch_distance": 6}    # NLM in a slice, h = 0.8 sigma
SOLID = {"patch_size": 3, "patch_distance": 2}   # NLM in 3-D, h = 0.6 sigma
REACH = 3                                        # slices on each side that SOLID looks at
BLOCK = 12
N4_MM, N4_FLOOR = 7, 0.1    # N4 works on about such voxels, on those above that share of the 99.5th percentile
SETTINGS = [FLAT, SOLID, REACH, BLOCK, N4_MM, N4_FLOOR]


def module(name):
    try:
        return __import__(name, fromlist=["_"])
    except ImportError:
        return None


# Method: the artifacts that it is made for, the packages that it needs.
METHODS = {
    "NLM, 2-D": ({"noise"}, ("skimage.restoration",)),
    "NLM": ({"noise"}, ("skimage.restoration",)),
    "N4": ({"bias"}, ("SimpleITK",)),
    "NLM, N4": ({"bias", "noise"}, ("SimpleITK", "skimage.restoration")),
    "BM4D": ({"noise"}, ("bm4d",)),
}


def missing():
    """{method: the packages that it lacks here}"""
    lacks = {name: [m for m in needed if not module(m)] for name, (_, needed) in METHODS.items()}
    return {name: packages for name, packages in lacks.items() if packages}


def fitted(clean, y):
    """y times the factor that fits `clean` best."""
    return y * ((clean * y).sum() / (y.astype(float) ** 2).sum())


def noise_level(v, axis):
    """Standard deviation of the volume's noise: the 10th percentile of that of all blocks of 12 x 12 pixels of its
    slices, a plane taken out of each, over what that percentile is in pure noise.  Unlike a wavelet's finest scale it
    is not deceived by noise that was blurred."""
    slices = np.moveaxis(v, axis, 0)
    n, h, w = slices.shape
    rows, columns = h // BLOCK, w // BLOCK
    if rows * columns == 0:
        return float(np.std(v))
    blocks = slices[:, :rows * BLOCK, :columns * BLOCK].reshape(n, rows, BLOCK, columns, BLOCK)
    blocks = blocks.transpose(0, 1, 3, 2, 4).reshape(-1, BLOCK * BLOCK).astype(float)
    ramp = np.arange(BLOCK) - (BLOCK - 1) / 2
    plane = np.stack([np.ones(BLOCK * BLOCK), np.repeat(ramp, BLOCK), np.tile(ramp, BLOCK)], 1)
    basis, _ = np.linalg.qr(plane)
    rest = blocks - (blocks @ basis) @ basis.T
    freedom = BLOCK * BLOCK - 3
    deviations = np.sqrt((rest ** 2).sum(1) / freedom)
    # A sample's standard deviation spreads by 1 / sqrt(2 * freedom); 1.2816 of that below lies the 10th percentile.
    return float(np.percentile(deviations, 10) / (1 - 1.2816 / np.sqrt(2 * freedom)))


def nlm_flat(whole, axis, picked, sigma):
    """The picked slices, each denoised by itself."""
    denoise = module("skimage.restoration").denoise_nl_means
    slices = np.moveaxis(whole, axis, 0)[picked]
    out = [denoise(s, h=0.8 * sigma, sigma=sigma, fast_mode=True, **FLAT) for s in slices]
    return np.moveaxis(np.stack(out), 0, axis)


def nlm_solid(whole, axis, picked, sigma):
    """The picked slices, denoised together with their neighbours."""
    denoise = module("skimage.restoration").denoise_nl_means
    slices, out = np.moveaxis(whole, axis, 0), []
    for k in range(*picked.indices(len(slices))):
        first = max(0, k - REACH)
        window = slices[first:k + REACH + 1]
        out.append(denoise(window, h=0.6 * sigma, sigma=sigma, fast_mode=True, **SOLID)[k - first])
    return np.moveaxis(np.stack(out), 0, axis)


def n4_field(whole, axis, picked, edges):
    """What N4 divides the picked slices by, from the whole volume.  N4 leaves the level open: here the mean of what
    it looks at is kept."""
    sitk = module("SimpleITK")
    image = sitk.GetImageFromArray(np.ascontiguousarray(whole.T))
    image.SetSpacing([float(e) for e in edges])
    mask = sitk.BinaryThreshold(image, N4_FLOOR, 1e30, 1, 0)
    shrink = [max(1, int(round(N4_MM / float(e)))) for e in edges]
    small, inside = sitk.Shrink(image, shrink), sitk.Shrink(mask, shrink)
    method = sitk.N4BiasFieldCorrectionImageFilter()
    method.SetMaximumNumberOfIterations([50, 50, 50, 50])
    corrected = sitk.GetArrayFromImage(method.Execute(small, inside))
    kept = sitk.GetArrayFromImage(inside) > 0
    level = corrected[kept].mean() / sitk.GetArrayFromImage(small)[kept].mean()
    field, slices = method.GetLogBiasFieldAsImage(small), []
    for k in range(*picked.indices(whole.shape[axis])):
        one = image[tuple(slice(k, k + 1) if a == axis else slice(None) for a in range(3))]
        # Linear between the small image's voxels, its edge value outside.
        here = sitk.Resample(field, one, sitk.Transform(), sitk.sitkLinear, 0.0, sitk.sitkFloat32, True)
        slices.append(level * np.exp(sitk.GetArrayFromImage(here).T))
    return np.concatenate(slices, axis)


def restore(path, axis, picked, names):
    """{method: the picked slices, restored} for those of `names`; path: the whole corrupted volume; picked: a slice
    object along the axis."""
    image = nibabel.load(path)
    whole = image.get_fdata(dtype=np.float32)
    top = float(np.percentile(whole[whole > whole.mean()], 99.5))
    whole /= top
    edges = image.header.get_zooms()[:3]
    cut = tuple(picked if a == axis else slice(None) for a in range(3))
    sigma, out = noise_level(whole, axis), {}
    if "NLM" in names:
        out["NLM, 2-D"] = nlm_flat(whole, axis, picked, sigma)
        thick = max(edges) >= 1.5 * min(edges)
        out["NLM"] = out["NLM, 2-D"] if thick else nlm_solid(whole, axis, picked, sigma)
    if "N4" in names:
        field = n4_field(whole, axis, picked, edges)
        out["N4"] = whole[cut] / field
        if "NLM, N4" in names:
            out["NLM, N4"] = out["NLM"] / field
    if "BM4D" in names:
        out["BM4D"] = module("bm4d").bm4d(whole, sigma)[cut]
    return {name: (v * top).astype(np.float32) for name, v in out.items()}
