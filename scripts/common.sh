# shellcheck shell=bash
# Shared by the scripts of this folder; sourced, not run. Sets ROOT and CALLER_DIR and changes into ROOT.

# shellcheck disable=SC2034  # used by the scripts
CALLER_DIR="$PWD"
ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
cd "$ROOT" || exit 1

say() { printf '== %s\n' "$*"; }

die() {
  printf 'error: %s\n' "$*" >&2
  exit 1
}

# Prints the comment at the head of a script, without its first line, as its help text.
print_help() { awk 'NR == 1 { next } !/^#/ { exit } { sub(/^# ?/, ""); print }' "$1"; }

num_cpus() { nproc 2>/dev/null || getconf _NPROCESSORS_ONLN; }

# Debian names a tool with its version when several are installed; the repository is formatted with version 14.
find_llvm_tool() {
  local name
  for name in "$1-14" "$1"; do
    if command -v "$name" >/dev/null; then
      printf '%s\n' "$name"
      return
    fi
  done
  die "$1 is not installed; run scripts/install-deps lint"
}

# The clang-tidy that scripts/install-deps gets from PyPI: Debian 12 has 14, which takes more than twice as long, as every
# check goes through the headers of the system.
CLANG_TIDY_VERSION=23.1.4
CLANG_TIDY_FOLDER="$ROOT/build/tools/clang-tidy-$CLANG_TIDY_VERSION"

find_clang_tidy() {
  if [ -x "$CLANG_TIDY_FOLDER/bin/clang-tidy" ]; then
    printf '%s\n' "$CLANG_TIDY_FOLDER/bin/clang-tidy"
  else
    find_llvm_tool clang-tidy
  fi
}

# Prints the path of the CUDA compiler; fails where there is none. CUDACXX goes first, as in CMake.
find_nvcc() { command -v "${CUDACXX:-nvcc}" || command -v /usr/local/cuda/bin/nvcc; }

# run_logged LOG COMMAND...: keeps the output of a chatty command in LOG and shows it only when the command fails.
run_logged() {
  local log="$1"
  shift
  mkdir -p "$(dirname "$log")"
  if ! "$@" >"$log" 2>&1; then
    cat "$log" >&2
    return 1
  fi
}

use_ccache() {
  if command -v ccache >/dev/null; then
    export CMAKE_CXX_COMPILER_LAUNCHER="${CMAKE_CXX_COMPILER_LAUNCHER-ccache}"
    export CMAKE_CUDA_COMPILER_LAUNCHER="${CMAKE_CUDA_COMPILER_LAUNCHER-ccache}"
    # Another clone of the same sources finds what this one compiled.
    export CCACHE_BASEDIR="${CCACHE_BASEDIR-$ROOT}" CCACHE_NOHASHDIR="${CCACHE_NOHASHDIR-1}"
  fi
}

# Every C++ source of the project, one per line.
list_sources() {
  find include src apps python tests bench examples -type f \( -name '*.hpp' -o -name '*.cpp' -o -name '*.cu' -o -name '*.cuh' \) |
    LC_ALL=C sort
}
