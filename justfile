# `just check` is what CI runs.
check:
    ./test.sh

# The two minutes that convince: three drills on this machine, nothing installed.
demo:
    cargo run --release -- demo

# For 64-bit boards, with Debian's own cross toolchain; installs what is missing (root or sudo).
arm64:
    cross/debian arm64 build --release --locked

# For 32-bit boards from the Raspberry Pi 2 on.
armhf:
    cross/debian armhf build --release --locked
