# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""Map the rooms of the repository (kernels/, parallel/, ...) under one import name, k2_megatron."""

from pathlib import Path

from setuptools import find_packages, setup

ROOMS = ("kernels", "recompute", "offload", "parallel")

rooms = [room for room in ROOMS if Path(room).is_dir()]
packages = find_packages(include=["k2_megatron", "k2_megatron.*"])
package_dir = {"k2_megatron": "k2_megatron"}
for room in rooms:
    package_dir[f"k2_megatron.{room}"] = room
    packages += [f"k2_megatron.{room}"]
    packages += [f"k2_megatron.{room}.{sub}" for sub in find_packages(room)]

setup(packages=packages, package_dir=package_dir, package_data={"k2_megatron": ["py.typed"]})
