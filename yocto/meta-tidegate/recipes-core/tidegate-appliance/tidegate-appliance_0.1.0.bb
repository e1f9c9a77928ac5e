# nooelint: oelint.var.mandatoryvar.HOMEPAGE - there is no public page
SUMMARY = "A board that does nothing but run Tidegate"
DESCRIPTION = "The data partition for the queue, the partition with the keys that the factory gave the board, a \
               journal in memory, and the hardware watchdog."
SECTION = "base"
LICENSE = "MIT | Apache-2.0"
# nooelint: oelint.var.licenseremotefile - all files are in this layer
LIC_FILES_CHKSUM = "file://${COMMON_LICENSE_DIR}/MIT;md5=0835ade698e0bcf8506ecda2f7b4f302"

SRC_URI = "\
    file://10-tidegate-journal.conf \
    file://10-tidegate-watchdog.conf \
    file://50-data.conf \
    file://50-factory.conf \
    file://factory.mount \
    file://var-lib-tidegate.mount \
"
CVE_PRODUCT = "tidegate"
S = "${UNPACKDIR}"

inherit allarch features_check

REQUIRED_DISTRO_FEATURES = "systemd"

do_configure[noexec] = "1"
do_compile[noexec] = "1"

do_install() {
    install -D -m 0644 ${UNPACKDIR}/10-tidegate-journal.conf ${D}${systemd_unitdir}/journald.conf.d/10-tidegate.conf
    install -D -m 0644 ${UNPACKDIR}/10-tidegate-watchdog.conf ${D}${systemd_unitdir}/system.conf.d/10-tidegate.conf
    install -d ${D}${systemd_system_unitdir}/tidegate.service.d
    install -m 0644 ${UNPACKDIR}/50-data.conf ${UNPACKDIR}/50-factory.conf ${D}${systemd_system_unitdir}/tidegate.service.d
    install -m 0644 ${UNPACKDIR}/var-lib-tidegate.mount ${UNPACKDIR}/factory.mount ${D}${systemd_system_unitdir}
    # Mount points: the root file system is read-only.
    install -d -m 0755 ${D}${localstatedir}/lib/tidegate
    install -d -m 0700 ${D}/factory
}

PACKAGE_BEFORE_PN = "${PN}-factory"

FILES:${PN}-factory += "\
    /factory \
    ${systemd_system_unitdir}/factory.mount \
    ${systemd_system_unitdir}/tidegate.service.d/50-factory.conf \
"
FILES:${PN} += "\
    ${localstatedir}/lib/tidegate \
    ${systemd_system_unitdir}/tidegate.service.d/50-data.conf \
    ${systemd_system_unitdir}/var-lib-tidegate.mount \
    ${systemd_unitdir}/journald.conf.d \
    ${systemd_unitdir}/system.conf.d \
"

# The data partition is checked before it is mounted.
RDEPENDS:${PN} = "e2fsprogs-e2fsck"
