SUMMARY = "A small image that runs Tidegate and nothing else"
DESCRIPTION = "The root file system is read-only; queue and configuration of the board are on a partition of their \
               own. Nobody can log in with a password."

require tidegate-image.inc

# Boot, root, the board's keys, data; for boards that start from a FAT partition, as a Raspberry Pi.
WKS_FILE = "tidegate-sdcard.wks.in"
IMAGE_FSTYPES = "wic.bz2 wic.bmap"
