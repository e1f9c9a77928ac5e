# nooelint: oelint.var.mandatoryvar.HOMEPAGE,oelint.var.mandatoryvar.SRC_URI - no public page; it is made of an image
SUMMARY = "An update of tidegate-image-ab"
DESCRIPTION = "Signed with RAUC_KEY_FILE and RAUC_CERT_FILE, which are yours and are set in your configuration."
SECTION = "net"
LICENSE = "MIT"
CVE_PRODUCT = "tidegate"

inherit bundle

RAUC_BUNDLE_COMPATIBLE = "tidegate-${MACHINE}"
RAUC_BUNDLE_VERSION ?= "${DISTRO_VERSION}"
RAUC_BUNDLE_FORMAT = "verity"
RAUC_BUNDLE_SLOTS = "rootfs"
RAUC_SLOT_rootfs = "tidegate-image-ab"
RAUC_SLOT_rootfs[fstype] = "ext4"
