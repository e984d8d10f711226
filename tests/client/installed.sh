#!/bin/sh
# What a user of the installed library sees: it installs, its pkg-config file is enough to build the
# example, the example's loss falls, the headers compile alone as C and C++, and the library shows
# exactly what the headers declare.
# usage: installed.sh BUILD_DIR SOURCE_DIR CC [CFLAGS]
set -eu
build=$1 source=$2 cc=$3 flags=${4:-}
prefix=$build/tests/client/installed
rm -rf "$prefix"
cmake --install "$build" --component library --prefix "$prefix" >/dev/null
PKG_CONFIG_PATH=$(dirname "$(find "$prefix" -name mneme.pc)")
export PKG_CONFIG_PATH
LD_LIBRARY_PATH=$(pkg-config --variable=libdir mneme)
export LD_LIBRARY_PATH

# shellcheck disable=SC2046,SC2086 # lists of flags
$cc $flags -std=c11 -Wall -Wextra -Werror "$source/client/example.c" -o "$prefix/example" \
  $(pkg-config --cflags --libs mneme) -lm
"$prefix/example" local: >"$prefix/losses"
awk '{ if (NR == 1) first = $4; last = $4 } END { exit !(NR == 20 && last < first / 20) }' \
  "$prefix/losses" || { echo "the loss does not fall:"; cat "$prefix/losses"; exit 1; }
if "$prefix/example" nowhere: >/dev/null 2>"$prefix/refusal"; then
  echo "a bad target was accepted"; exit 1
fi
grep -q 'INVALID (target)' "$prefix/refusal" || { cat "$prefix/refusal"; exit 1; }

for header in mneme.h mneme_types.h; do
  echo "#include <$header>" >"$prefix/alone.c"
  # shellcheck disable=SC2046
  $cc -std=c11 -pedantic -Wall -Wextra -Werror -fsyntax-only $(pkg-config --cflags mneme) \
    "$prefix/alone.c"
  # shellcheck disable=SC2046
  $cc -x c++ -std=c++11 -Wall -Wextra -Werror -fsyntax-only $(pkg-config --cflags mneme) \
    "$prefix/alone.c"
done

# Declared: every name before "(" at the start of a declaration that is not static inline.
include=$(pkg-config --variable=includedir mneme)
$cc -E -P -I"$include" "$include/mneme.h" | tr '\n' ' ' | sed 's/[;}]/&\n/g' |
  grep -v 'static inline' | grep -o '\bmn_[a-z0-9_]* *(' | tr -d ' (' | sort -u >"$prefix/declared"
nm -D --defined-only "$LD_LIBRARY_PATH/libmneme.so" | awk '$2 == "T" { sub("@.*", "", $3); print $3 }' |
  sort -u >"$prefix/shown"
diff "$prefix/declared" "$prefix/shown" || { echo "declared (<) is not shown (>)"; exit 1; }
