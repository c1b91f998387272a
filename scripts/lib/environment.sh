# shellcheck shell=bash
# What setup and run share: where things lie, whether they are up to date, how to enter them.
# Sourced with SWW_ROOT set to the clone.

venv=$SWW_ROOT/.venv
# Beside the build and install folders of a plain `colcon build` in the clone, never in them: the
# two would undo each other's links.
build=$venv/build
install=$venv/install

# Prints the apt ROS 2 to use (/opt/ros/<distro>), or "wheels" where there is none.
ros_source() {
  local distro
  for distro in "${ROS_DISTRO:-}" jazzy kilted humble rolling; do
    if [[ -n $distro && -e /opt/ros/$distro/setup.bash ]]; then
      echo "/opt/ros/$distro"
      return
    fi
  done
  echo wheels
}

# Prints a key of all that the virtual environment is made from.
environment_key() {
  local here=$SWW_ROOT/scripts/lib
  { echo "$SWW_ROOT $ros"; cat "$SWW_ROOT"/requirements/*.txt "$here"/relocate_ros_wheels.py; } |
    sha256sum | cut -d ' ' -f 1
}

# Prints a key of all that colcon builds from. Python modules are linked, so their edits are live
# without a build; of launch files, config and layouts, which are linked one by one, the names count.
build_key() {
  (
    cd "$SWW_ROOT"
    shopt -s nullglob
    echo "$1" launch/* config/* layouts/*
    cat colcon_defaults.yaml package.xml setup.* resource/* sww_interfaces/*.* sww_interfaces/*/*.*
    linkable || cat launch/* config/* layouts/* /dev/null
  ) | sha256sum | cut -d ' ' -f 1
}

# A path with spaces cannot stand in the shebang that a linked install writes.
linkable() {
  [[ $SWW_ROOT != *[[:space:]]* ]]
}

# Whether the stamp file $1 holds the key $2.
is_current() {
  [[ -e $1 && $(<"$1") == "$2" ]]
}

environment_is_current() {
  [[ -x $venv/bin/python ]] && is_current "$venv/.sww_key" "$1"
}

build_is_current() {
  [[ -e $install/local_setup.bash ]] && is_current "$install/.sww_key" "$1"
}

# Sources a ROS set-up file, which may read variables that are not set.
source_ros() {
  set +u
  # shellcheck disable=SC1090
  source "$1"
  set -u
}

# Puts the virtual environment's executables first.
activate_venv() {
  export VIRTUAL_ENV=$venv PATH=$venv/bin:$PATH
  unset PYTHONHOME
}

# Makes this shell one in which ROS 2, the built packages and torch are found.
enter_environment() {
  activate_venv
  if [[ $ros == wheels ]]; then
    export AMENT_PREFIX_PATH=$venv
  else
    source_ros "$ros/setup.bash"
  fi
  # colcon's script does not quote its interpreter: name one whose path has no space, and leave out
  # setup.bash, which sources ament's script in .venv, which does not either.
  COLCON_PYTHON_EXECUTABLE=$(readlink -f "$venv/bin/python3")
  source_ros "$install/local_setup.bash"
  unset COLCON_PYTHON_EXECUTABLE
  export PATH=$install/sww_ros/lib/sww_ros:$PATH
  linkable || export PYTHONPATH=$SWW_ROOT${PYTHONPATH:+:$PYTHONPATH}
  export ROS_DISTRO=${ROS_DISTRO:-jazzy}
  export ROS_AUTOMATIC_DISCOVERY_RANGE=${ROS_AUTOMATIC_DISCOVERY_RANGE:-LOCALHOST}
  if [[ -z ${FASTRTPS_DEFAULT_PROFILES_FILE:-} ]]; then
    export FASTRTPS_DEFAULT_PROFILES_FILE=$SWW_ROOT/config/fastdds_shm.xml
  fi
  if [[ -z ${HOME:-} ]]; then
    export ROS_LOG_DIR=${ROS_LOG_DIR:-$SWW_ROOT/log/ros}
  fi
}

ros=$(ros_source)
