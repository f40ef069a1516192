#!/usr/bin/env python3
"""Exactly clean brain volumes from BrainWeb's normal phantom: no noise, no field, every tissue flat.

    bench/phantom.py MRiLab_BrainModel.mat FOLDER

Writes FOLDER/BrainWeb_T2w.nii.gz and BrainWeb_T1w.nii.gz, spin echoes of the labels with BrainWeb's tissue parameters
at 1.5 T.  The labels (216 x 180 x 180 of 1 mm, 0 to 9) are those that MRiLab ships; needs NumPy, SciPy and nibabel.
"""
import pathlib
import sys

import nibabel
import numpy as np
import scipy.io

# Label: T1 ms, T2 ms, proton density.
TISSUES = {
    1: (2569, 329, 1.00),   # cerebrospinal fluid
    2: (833, 83, 0.86),     # grey matter
    3: (500, 70, 0.77),     # white matter
    4: (350, 70, 1.00),     # fat
    5: (900, 47, 1.00),     # muscle and skin
    6: (2569, 329, 1.00),   # skin
    8: (833, 83, 0.86),     # glial matter
    9: (500, 70, 0.77),     # connective tissue
}                           # 0, background, and 7, skull, give no signal
ECHOES = {"T2w": (4000, 100), "T1w": (500, 15)}   # TR and TE, ms


def main():
    if len(sys.argv) != 3:
        raise SystemExit(__doc__)
    labels = scipy.io.loadmat(sys.argv[1])["Anatomy"]
    # From front to back, from right to left, from the top of the head down.
    affine = np.array([[0, -1, 0, 90], [-1, 0, 0, 108], [0, 0, -1, 90], [0, 0, 0, 1]])
    for name, (tr, te) in ECHOES.items():
        signal = np.zeros(labels.shape, np.float32)
        for label, (t1, t2, density) in TISSUES.items():
            signal[labels == label] = 1000 * density * (1 - np.exp(-tr / t1)) * np.exp(-te / t2)
        nibabel.save(nibabel.Nifti1Image(signal, affine), pathlib.Path(sys.argv[2]) / ("BrainWeb_%s.nii.gz" % name))


if __name__ == "__main__":
    main()
