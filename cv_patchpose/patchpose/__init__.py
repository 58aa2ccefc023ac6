"""The PatchPose dataset: patches of keypoints turned and zoomed by known amounts.

After J. Lee, Y. Jeong, M. Cho, Self-Supervised Learning of Image Scale and Orientation, BMVC 2021.
Made on disk by :func:`cv_patchpose.patchpose.generator.generate` and read by
:class:`cv_patchpose.patchpose.sources.PatchPoseDataset`, or made while it is read by
:class:`cv_patchpose.patchpose.sources.PatchPoseStream`. A sibling of the estimators: it needs numpy,
OpenCV and tqdm.
"""
