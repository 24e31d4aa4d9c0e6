#!/usr/bin/env bash
# Makes an SDK for CMake's -DONNXRUNTIME_ROOT: the library from PYTHON's onnxruntime wheel, and headers (ONNX Runtime's
# and nlohmann's JSON) from Debian's packages, which are unpacked and not installed. If the system has them, also libwebp.
#
#     fetch-onnxruntime.sh FOLDER [PYTHON]
#
# ONNX Runtime's C interface is only extended, so headers may be older than the library. Plug-in providers need headers of
# 1.22, which Debian 13 does not have: the next release's come first.
set -euo pipefail
folder=$(realpath -m "$1")
python=${2:-python3}

library=$("$python" - <<'END'
from importlib.util import find_spec
from pathlib import Path

spec = find_spec("onnxruntime")
found = sorted(Path(spec.origin).parent.glob("capi/libonnxruntime.so.*")) if spec else []
print(found[-1] if found else "")
END
)
[ -n "$library" ] || { echo "this Python has no onnxruntime wheel with a library: pip install onnxruntime" >&2; exit 1; }
command -v apt-get >/dev/null || { echo "apt-get is needed for the headers; or use an ONNX Runtime SDK" >&2; exit 1; }

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
mkdir -p lists/partial cache debs

# Downloads a package of another release of Debian, through the system's mirror; the system's own package lists are not
# changed.
download_from() {
    local mirror keyring=/usr/share/keyrings/debian-archive-keyring.gpg
    mirror=$(apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' 'Origin: Debian' | head -n 1)
    [ -n "$mirror" ] || { echo "no Debian mirror is configured, and there is no other source of $2" >&2; return 1; }
    echo "deb [signed-by=$keyring] $mirror $1 main" > sources.list
    local own=(-qq -o "Dir::Etc::sourcelist=$work/sources.list" -o Dir::Etc::sourceparts=- -o "Dir::State::lists=$work/lists"
               -o "Dir::Cache=$work/cache" -o APT::Sandbox::User=)
    apt-get "${own[@]}" update && (cd debs && apt-get "${own[@]}" download "$2")
}

(cd debs && apt-get -qq download nlohmann-json3-dev 2>/dev/null) || download_from trixie nlohmann-json3-dev
download_from forky libonnxruntime-dev || download_from trixie libonnxruntime-dev
for package in libwebp-dev libwebp7 libsharpyuv0; do
    (cd debs && apt-get -qq download "$package" 2>/dev/null) || true
done
for package in debs/*.deb; do dpkg -x "$package" unpacked; done

rm -rf "$folder.partial"
mkdir -p "$folder.partial/lib" "$folder.partial/share"
cp -r unpacked/usr/include "$folder.partial/"
cp -r unpacked/usr/share/cmake "$folder.partial/share/"
for each in unpacked/usr/lib/*/libwebp.so* unpacked/usr/lib/*/libsharpyuv.so*; do
    [ ! -e "$each" ] || cp -a "$each" "$folder.partial/lib/"
done
# The library looks for its providers, such as CUDA's in the onnxruntime-gpu wheel, beside the name that it is loaded by.
for each in "$(dirname "$library")"/libonnxruntime_providers_*.so; do
    [ ! -e "$each" ] || ln -s "$each" "$folder.partial/lib/"
done
ln -s "$library" "$folder.partial/lib/libonnxruntime.so.1"
ln -s libonnxruntime.so.1 "$folder.partial/lib/libonnxruntime.so"
rm -rf "$folder"
mv "$folder.partial" "$folder"
