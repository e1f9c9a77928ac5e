# nooelint: oelint.var.mandatoryvar.HOMEPAGE - there is no public page
SUMMARY = "What all gateways of a fleet have in common"
DESCRIPTION = "The vendor's layer of the configuration. Put your own 50-fleet.toml in its place with a bbappend."
SECTION = "net"
LICENSE = "MIT | Apache-2.0"
# nooelint: oelint.var.licenseremotefile - all files are in this layer
LIC_FILES_CHKSUM = "file://${COMMON_LICENSE_DIR}/MIT;md5=0835ade698e0bcf8506ecda2f7b4f302"

SRC_URI = "file://50-fleet.toml"
CVE_PRODUCT = "tidegate"
S = "${UNPACKDIR}"

inherit allarch

do_configure[noexec] = "1"
do_compile[noexec] = "1"

do_install() {
    install -D -m 0644 ${UNPACKDIR}/50-fleet.toml ${D}${nonarch_libdir}/tidegate/50-fleet.toml
}

FILES:${PN} += "${nonarch_libdir}/tidegate"
