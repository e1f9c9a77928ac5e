SUMMARY = "Tidegate and what it needs on a board"
DESCRIPTION = "The gateway, what makes a board an appliance for it, root certificates and a time service."
SECTION = "net"

inherit packagegroup features_check

REQUIRED_DISTRO_FEATURES = "systemd"

# systemd-timesyncd, which tells the time and vouches for it, is part of systemd.
RDEPENDS:${PN} = "\
    ca-certificates \
    systemd \
    tidegate \
    tidegate-appliance \
    tidegate-appliance-factory \
    tidegate-fleet \
"
