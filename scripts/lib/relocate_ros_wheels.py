"""Makes a virtual environment that holds ROS 2 wheels an ament prefix that colcon can build on.

Run after pip with the environment's own Python; running it again changes nothing. It mends two
things that the wheels carry over from, or leave out on, the machine that built them:

- exported CMake targets name that machine's Python and NumPy headers: point them at ours;
- the prefix has no setup.bash and its kin: write them from ament_package's templates.
"""

from pathlib import Path
import re
import sys
import sysconfig

from ament_package import templates
import numpy

BUILDER = r'/opt/python/cp\d+-cp\d+'
NUMPY_HEADERS = re.compile(BUILDER + r'/lib/python[\d.]+/site-packages/numpy/_?core/include')
PYTHON_HEADERS = re.compile(BUILDER + r'/include/python[\d.]+')


def mend_exports(prefix: Path) -> int:
    """Point the exported CMake targets under prefix at this Python's headers; count the files."""
    mended = 0
    for path in prefix.glob('share/*/cmake/*Export.cmake'):
        before = path.read_text()
        after = NUMPY_HEADERS.sub(lambda _: numpy.get_include(), before)
        after = PYTHON_HEADERS.sub(lambda _: sysconfig.get_path('include'), after)
        if after != before:
            path.write_text(after)
            mended += 1
    return mended


def write_setup_files(prefix: Path) -> int:
    """Write the prefix-level setup files, which ROS 2 built from source has; count them."""
    variables = {
        'CMAKE_INSTALL_PREFIX': str(prefix),
        'SKIP_PARENT_PREFIX_PATH': '1',
        'ament_package_PYTHON_EXECUTABLE': sys.executable,
    }
    names = templates.get_prefix_level_template_names()
    for name in names:
        source = str(templates.get_prefix_level_template_path(name))
        if name.endswith('.in'):
            text = templates.configure_file(source, variables)
        else:
            text = Path(source).read_text()
        (prefix / name.removesuffix('.in')).write_text(text)
    return len(names)


def main() -> None:
    """Mend the environment that this Python belongs to."""
    prefix = Path(sys.prefix)
    mended = mend_exports(prefix)
    written = write_setup_files(prefix)
    print(f'{mended} CMake exports mended, {written} setup files written')


if __name__ == '__main__':
    main()
