#!/usr/bin/env python3
"""Makes artifacts.safetensors: each artifact on small odd-sized volumes, from weights/train/artifacts.py."""
import json
import os
import sys

import numpy as np
import scipy.ndimage
from safetensors.numpy import save_file

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.join(HERE, "..", "..", "weights", "train"))
import artifacts                                         # noqa: E402

VOXEL = {"odd": (0.9, 1.2, 2.5), "even": (1.0, 1.0, 1.0), "flat": (0.8, 1.1, 1.0)}


def main():
    rng = np.random.default_rng(0)
    volumes = {}
    for name, shape in (("odd", (13, 11, 7)), ("even", (10, 16, 8)), ("flat", (17, 14, 1))):
        x = scipy.ndimage.gaussian_filter(rng.random(shape), 0.7)
        x = np.clip((x - 0.42) * 6, 0, None)
        volumes[name] = (x / x.max()).astype(np.float32)
    A = artifacts
    odd, even, flat = (volumes[k].shape for k in ("odd", "even", "flat"))
    wrap = lambda seed, *a: {"seed": seed, "preset": None, "artifacts": list(a)}
    cases = {
        "noise": ("odd", wrap(7, A.draw_noise(7, 2, 0.1))),
        "noise_blur": ("odd", wrap(2 ** 40 + 5, A.draw_noise(2 ** 40 + 5, 2, 0.1, 0.6))),
        "noise_rician": ("even", wrap(11, A.draw_noise(11, 0, 0.2, 1.0, True))),
        "bias_1": ("odd", wrap(3, A.draw_bias(3, 1, 0.5))), "bias_3": ("odd", wrap(4, A.draw_bias(4, 3, 0.9))),
        "bias_5": ("even", wrap(5, A.draw_bias(5, 5, 0.4))), "bias_flat": ("flat", wrap(6, A.draw_bias(6, 3, 0.5))),
        "motion": ("odd", wrap(8, A.draw_motion(8, odd, 1.5, 8.0, 40.0))),
        "motion_even": ("even", wrap(9, A.draw_motion(9, even, 1.0, 5.0, (15.0, 20.0)))),
        "motion_translation": ("odd", wrap(10, A.draw_motion(10, odd, 2.0, 0.0, 60.0))),
        "motion_rotation": ("even", wrap(12, A.draw_motion(12, even, 0.0, 20.0, 100.0))),
        "motion_flat": ("flat", wrap(13, A.draw_motion(13, flat, 1.5, 8.0, 40.0))),
        "motion_zero": ("odd", wrap(14, A.draw_motion(14, odd, 0.0, 0.0, 40.0))),
        "paper": ("odd", A.draw(21, "paper", A.KINDS, odd, 2)), "mild": ("odd", A.draw(22, "mild", A.KINDS, odd, 2)),
        "moderate": ("even", A.draw(23, "moderate", A.KINDS, even, 2)), "severe": ("odd", A.draw(24, "severe", A.KINDS, odd, 2)),
        "two": ("even", A.draw(25, "moderate", ("bias", "noise"), even, 1)),
    }
    tensors, meta = {}, {"description": "x.NAME: clean scaled volumes, stored [k,j,i] (i fastest); y.CASE: float64 result of the record in "
                         "this metadata's entry CASE: {volume, voxel_mm, record}; foreground: voxels above the mean of x.NAME in float64; "
                         "philox, normal1, normal2: for the first 16 indexes of seed 7, stream 0, frame 0; "
                         "record of paper, mild, moderate, severe, two: as drawn from their seed"}
    turn = lambda a: np.ascontiguousarray(np.asarray(a).transpose(2, 1, 0))
    for name, x in volumes.items():
        tensors["x." + name] = turn(x)
    for case, (name, record) in cases.items():
        x = volumes[name].astype(np.float64)
        y = A.apply(x, record, VOXEL[name], A.foreground(x))
        tensors["y." + case] = turn(y)
        meta[case] = json.dumps({"volume": name, "voxel_mm": VOXEL[name], "record": record})
    index = np.arange(16)
    tensors["philox"] = np.stack(A.philox(index, 7, 0), 1).astype(np.int64)
    tensors["normal1"], tensors["normal2"] = A.normal_pair(index, 7, 0)
    # frames of a 4-D file differ by the counter's last word
    x = volumes["even"].astype(np.float64)
    tensors["y.noise_frame2"] = turn(A.apply(x, cases["noise_rician"][1], VOXEL["even"], A.foreground(x), frame=2))
    meta["noise_frame2"] = json.dumps({"volume": "even", "voxel_mm": VOXEL["even"], "frame": 2, "record": cases["noise_rician"][1]})
    save_file(tensors, os.path.join(HERE, "artifacts.safetensors"), meta)


if __name__ == "__main__":
    main()
