SUMMARY = "A small image that runs Tidegate and nothing else"
DESCRIPTION = "The root file system is read-only; queue and configuration of the board are on a partition of their \
               own. Nobody can log in with a password."
SECTION = "net"
LICENSE = "MIT"
CVE_PRODUCT = "tidegate"

inherit core-image features_check

REQUIRED_DISTRO_FEATURES = "systemd"

IMAGE_INSTALL = "packagegroup-core-boot packagegroup-tidegate ${CORE_IMAGE_EXTRA_INSTALL}"
IMAGE_FEATURES += "read-only-rootfs"
IMAGE_LINGUAS = ""

# What a developer's local.conf may bring stays out: root has no password here, so nobody logs in with one.
IMAGE_FEATURES:remove = "allow-empty-password allow-root-login empty-root-password serial-autologin-root"

# Boot, root, the board's keys, data; for boards that start from a FAT partition, as a Raspberry Pi.
WKS_FILE = "tidegate-sdcard.wks.in"
IMAGE_FSTYPES = "wic.bz2 wic.bmap"

# Of the data partition, in MiB; `max_bytes` of the queue is 1 GiB unless the configuration says otherwise.
TIDEGATE_DATA_SIZE ?= "2048"
