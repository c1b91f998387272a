"""Builds and installs the Python package sww_ros (ament_python)."""

from glob import glob
import os
from pathlib import Path
import sys

from setuptools import find_packages, setup

PACKAGE = 'sww_ros'
LONGEST_SHEBANG = 127


def interpreter() -> str:
    """
    Return the interpreter that the installed executables shall name.

    It is the active virtual environment's, where torch is, even when colcon itself runs on the
    system's Python: otherwise `ros2 run` would not see torch. A path that cannot stand in a
    shebang line falls back to the first python3 on PATH.
    """
    python = sys.executable
    if venv := os.environ.get('VIRTUAL_ENV'):
        python = str(Path(venv, 'bin', 'python3'))
    if ' ' in python or len(f'#!{python}') > LONGEST_SHEBANG:
        return '/usr/bin/env python3'
    return python


# `develop` (colcon build --symlink-install) takes the shebang from here, `install` from options.
os.environ['__PYVENV_LAUNCHER__'] = interpreter()

setup(
    name=PACKAGE,
    version='0.1.0',
    packages=find_packages(include=[PACKAGE, f'{PACKAGE}.*']),
    package_data={PACKAGE: ['py.typed'], f'{PACKAGE}.models': ['builtin/*'],
                  f'{PACKAGE}.evaluation': ['prompts/*'],
                  f'{PACKAGE}.web': ['*.html', '*.css', '*.js']},
    data_files=[
        ('share/ament_index/resource_index/packages', [f'resource/{PACKAGE}']),
        (f'share/{PACKAGE}', ['package.xml']),
        (f'share/{PACKAGE}/launch', sorted(glob('launch/*.py'))),
        (f'share/{PACKAGE}/config', sorted(glob('config/*'))),
        (f'share/{PACKAGE}/layouts', sorted(glob('layouts/*'))),
    ],
    options={'build_scripts': {'executable': interpreter()}},
    install_requires=['setuptools'],
    extras_require={'test': ['pytest']},
    zip_safe=True,
    maintainer='The sww_ros authors',
    maintainer_email='sww_ros@users.noreply.github.com',
    description='Qwen2.5-VL speaks while it watches a camera topic, and answers questions.',
    license='Apache-2.0',
    entry_points={
        'console_scripts': [
            'console = sww_ros.terminal.console:main',
            'narrator = sww_ros.nodes.narrator:main',
            'page = sww_ros.web.page:main',
            'shapes_camera = sww_ros.sources.shapes_camera:main',
            'speech = sww_ros.terminal.speech:main',
            'video_source = sww_ros.sources.video_source:main',
        ],
    },
)
