# nooelint: oelint.var.mandatoryvar.HOMEPAGE - there is no public page
SUMMARY = "Where RAUC finds the two systems, and whose updates it takes"
DESCRIPTION = "Takes the place of rauc-conf. RAUC_KEYRING_FILE, with its whole path, is the certificate of whoever \
               signs your updates; without it there is no such package."
SECTION = "net"
LICENSE = "MIT | Apache-2.0"
# nooelint: oelint.var.licenseremotefile - all files are in this layer
LIC_FILES_CHKSUM = "file://${COMMON_LICENSE_DIR}/MIT;md5=0835ade698e0bcf8506ecda2f7b4f302"
CVE_PRODUCT = "tidegate"

RAUC_KEYRING_FILE ??= ""
SRC_URI = "\
    file://system.conf \
    file://${RAUC_KEYRING_FILE} \
"
S = "${UNPACKDIR}"

# nooelint: oelint.task.noanonpython - as features_check does it, for a variable that has no feature
python () {
    if not d.getVar("RAUC_KEYRING_FILE").startswith("/"):
        raise bb.parse.SkipRecipe("RAUC_KEYRING_FILE is not set to the whole path of a certificate")
}

do_configure[noexec] = "1"
do_compile[noexec] = "1"

do_install() {
    install -D -m 0644 ${UNPACKDIR}/system.conf ${D}${nonarch_libdir}/rauc/system.conf
    # The machine is part of the name: a bundle for another board is refused.
    sed -i -e 's/@MACHINE@/${MACHINE}/' ${D}${nonarch_libdir}/rauc/system.conf
    install -m 0644 ${UNPACKDIR}${RAUC_KEYRING_FILE} ${D}${nonarch_libdir}/rauc/ca.cert.pem
}

PACKAGE_ARCH = "${MACHINE_ARCH}"

FILES:${PN} += "${nonarch_libdir}/rauc"

RPROVIDES:${PN} += "virtual-rauc-conf"
RCONFLICTS:${PN} = "rauc-conf"
