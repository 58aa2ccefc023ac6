"""The PatchPose dataset: patches of keypoints turned and zoomed by known amounts.

After J. Lee, Y. Jeong, M. Cho, Self-Supervised Learning of Image Scale and Orientation, BMVC 2021.
`generator.generate` writes it to disk, `sources.PatchPoseDataset` reads it, and
`sources.PatchPoseStream` makes the same pairs while they are read. The package needs numpy, OpenCV
and tqdm.
"""
