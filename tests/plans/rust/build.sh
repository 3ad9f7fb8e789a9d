#!/bin/sh
# Makes the artifact $2, a program for the processor $1.
set -e
CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER=aarch64-linux-gnu-gcc
export CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER
cargo build --quiet --target "$1-unknown-linux-gnu" >&2
cp "target/$1-unknown-linux-gnu/debug/rust-plan" "$2"
