# nooelint: oelint.var.mandatoryvar.HOMEPAGE - there is no public page
SUMMARY = "Keeps an update only when Tidegate is healthy under it"
DESCRIPTION = "Takes the place of rauc-mark-good, which calls a system good that has merely booted."
SECTION = "net"
LICENSE = "MIT | Apache-2.0"
# nooelint: oelint.var.licenseremotefile - all files are in this layer
LIC_FILES_CHKSUM = "file://${COMMON_LICENSE_DIR}/MIT;md5=0835ade698e0bcf8506ecda2f7b4f302"
CVE_PRODUCT = "tidegate"

SRC_URI = "file://tidegate-mark-good.service"
S = "${UNPACKDIR}"

inherit allarch systemd

SYSTEMD_SERVICE:${PN} = "tidegate-mark-good.service"

do_configure[noexec] = "1"
do_compile[noexec] = "1"

do_install() {
    install -D -m 0644 ${UNPACKDIR}/tidegate-mark-good.service ${D}${systemd_system_unitdir}/tidegate-mark-good.service
}

RDEPENDS:${PN} = "rauc tidegate"
