SUMMARY = "A small image that runs Tidegate"
LICENSE = "MIT"

inherit core-image

IMAGE_INSTALL:append = " tidegate ca-certificates"
