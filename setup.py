"""Build the C++ sampler with CMake; everything else about the package is in pyproject.toml."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import sysconfig
from pathlib import Path

import cmake
import ninja
import pybind11
from setuptools import Extension, find_packages, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
PURE_PYTHON = os.environ.get("PATCHPOSE_PURE_PYTHON", "0") not in ("", "0")


class CMakeBuild(build_ext):
    """Configure, build and install CMakeLists.txt where setuptools expects the extension."""

    def build_extension(self, ext: Extension) -> None:
        """Run cmake; its install step writes PREFIX/cv_patchpose/_core."""
        prefix = Path(self.get_ext_fullpath(ext.name)).resolve().parent.parent
        build = Path(self.build_temp).resolve()
        configuration = "Debug" if self.debug else "Release"
        generator = [] if sys.platform == "win32" else ["-G", "Ninja"]
        # Those of the build environment: a system's cmake may be too old.
        folders = [cmake.CMAKE_BIN_DIR, ninja.BIN_DIR, os.environ.get("PATH", "")]
        env = {**os.environ, "PATH": os.pathsep.join(folders)}
        options = {
            "CMAKE_BUILD_TYPE": configuration,
            "CMAKE_INSTALL_PREFIX": str(prefix),
            "Python_EXECUTABLE": sys.executable,
            "pybind11_DIR": pybind11.get_cmake_dir(),
        }
        # "-arch x86_64 -arch arm64" is for setuptools' own compiler. Without it the wheel's tag
        # promises what Python itself was built for.
        architectures = re.findall(r"-arch (\S+)", os.environ.get("ARCHFLAGS", ""))
        if not architectures and sysconfig.get_platform().endswith("universal2"):
            architectures = ["x86_64", "arm64"]
        if architectures:
            options["CMAKE_OSX_ARCHITECTURES"] = ";".join(architectures)
        defines = [f"-D{name}={value}" for name, value in options.items()]
        # --fresh: a cache left by an isolated build names a ninja that is gone.
        for command in (
            ["--fresh", "-S", str(ROOT), "-B", str(build), *generator, *defines],
            ["--build", str(build), "--config", configuration, "--parallel"],
            ["--install", str(build), "--config", configuration],
        ):
            subprocess.run(["cmake", *command], check=True, env=env)


setup(
    packages=[*find_packages(include=["cv_patchpose", "cv_patchpose.*"]), "cv_patchpose.models"],
    package_dir={"cv_patchpose.models": "models"},
    package_data={"cv_patchpose": ["py.typed"], "cv_patchpose.models": ["*.onnx", "*.md"]},
    ext_modules=[] if PURE_PYTHON else [Extension("cv_patchpose._core", sources=[])],
    cmdclass={"build_ext": CMakeBuild},
)
