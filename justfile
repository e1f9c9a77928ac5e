# `just check` is what CI runs.
check:
    ./test.sh

# The two minutes that convince: three drills on this machine, nothing installed.
demo:
    cargo run --release -- demo
