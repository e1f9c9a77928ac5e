SUMMARY = "tidegate-image with two root file systems, for updates"
DESCRIPTION = "One root file system is updated while the other runs, and the bootloader goes back to the old one \
               unless Tidegate was healthy under the new one."

require recipes-core/images/tidegate-image.inc

IMAGE_INSTALL += "rauc tidegate-mark-good tidegate-rauc-conf"
# It calls a system good that has merely booted.
BAD_RECOMMENDATIONS += "rauc-mark-good"

WKS_FILE = "tidegate-ab.wks.in"
# The bundle takes the root file system itself.
IMAGE_FSTYPES = "ext4 wic.bz2 wic.bmap"

# Of each root file system, in MiB.
TIDEGATE_SLOT_SIZE ?= "512"
