# nooelint: oelint.var.mandatoryvar.HOMEPAGE - there is no public page
SUMMARY = "IoT gateway firmware with a store-and-forward queue that loses nothing"
DESCRIPTION = "Reads Modbus and serial devices, serves a local MQTT broker, and keeps every acknowledged message \
               on disk until the cloud has it."
SECTION = "net"
LICENSE = "MIT | Apache-2.0"
LIC_FILES_CHKSUM = "\
    file://LICENSE-MIT;md5=1f6817a25708a7c52bedc81d8576cc8f \
    file://LICENSE-APACHE;md5=22a53954e4e0ec258dfce4391e905dac \
"
CVE_PRODUCT = "tidegate"

# The repository that this layer stands in, at the tip of this branch.
TIDEGATE_REPOSITORY ?= "${@os.path.realpath('${FILE_DIRNAME}/../../../..')}"
TIDEGATE_BRANCH ?= "main"
SRC_URI = "git://${TIDEGATE_REPOSITORY};protocol=file;branch=${TIDEGATE_BRANCH}"
# nooelint: oelint.vars.autorev - a release is pinned by its builder: SRCREV:pn-tidegate in the distribution's configuration
SRCREV ?= "${AUTOREV}"

# One line for each crate of Cargo.lock. Generated: see yocto/README.md.
# nooelint: oelint.file.requireinclude - with `require` nothing can be parsed, update_crates neither, before the file is there
include ${BPN}-crates.inc

inherit cargo cargo-update-recipe-crates systemd useradd

# The profile strips; here the debug symbols belong into their own package.
export CARGO_PROFILE_RELEASE_STRIP = "none"
export CARGO_PROFILE_RELEASE_DEBUG = "line-tables-only"

SYSTEMD_SERVICE:${PN} = "tidegate.service"

# By useradd and not by sysusers.d: a root file system that is read-only cannot be given a user at boot.
USERADD_PACKAGES = "${PN}"
GROUPADD_PARAM:${PN} = "--system tidegate"
USERADD_PARAM:${PN} = "--system --home-dir ${localstatedir}/lib/tidegate --no-create-home \
                       --shell ${base_sbindir}/nologin --gid tidegate --groups dialout tidegate"

python tidegate_need_crates() {
    if "crate://" not in d.getVar("SRC_URI"):
        bb.fatal("tidegate-crates.inc is missing: run yocto/update-crates, then build again")
}
tidegate_need_crates[doc] = "Says what to do when the list of crates has not been generated"
do_configure[prefuncs] += "tidegate_need_crates"

# Cargo is run in the source: it looks for .cargo/config.toml, which says how SQLite is built, from where it is run.
do_compile[dirs] = "${B} ${S}"

do_install:append() {
    install -D -m 0644 ${S}/systemd/tidegate.service ${D}${systemd_system_unitdir}/tidegate.service
    install -D -m 0644 ${S}/systemd/drop-ins/notify-reload.conf \
        ${D}${systemd_system_unitdir}/tidegate.service.d/10-notify-reload.conf
    # Passwords may stand in the owner's files: the service may read them, others not.
    install -d -m 0750 ${D}${sysconfdir}/tidegate ${D}${sysconfdir}/tidegate/conf.d
    install -m 0640 ${S}/config/tidegate.toml ${D}${sysconfdir}/tidegate
    chown -R root:tidegate ${D}${sysconfdir}/tidegate
    # For whoever makes the image; see tidegate-fleet.
    install -d ${D}${nonarch_libdir}/tidegate
}

FILES:${PN} += "${nonarch_libdir}/tidegate ${systemd_system_unitdir}/tidegate.service.d"
CONFFILES:${PN} = "${sysconfdir}/tidegate/tidegate.toml"

# Without it no cloud's certificate can be checked.
RRECOMMENDS:${PN} = "ca-certificates"
