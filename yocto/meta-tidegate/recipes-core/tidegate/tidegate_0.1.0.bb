SUMMARY = "IoT gateway firmware with a store-and-forward queue that loses nothing"
DESCRIPTION = "Reads Modbus and serial devices, serves a local MQTT broker, and keeps every acknowledged message \
until the cloud has it."
LICENSE = "MIT | Apache-2.0"
LIC_FILES_CHKSUM = "file://LICENSE-MIT;md5=1f6817a25708a7c52bedc81d8576cc8f"

inherit cargo cargo-update-recipe-crates systemd useradd

# Where your copy of the repository is, in BitBake's own form, and which commit of it.
TIDEGATE_SOURCE ?= "git:///srv/git/tidegate.git;protocol=file;branch=main"
SRC_URI = "${TIDEGATE_SOURCE}"
SRCREV ?= "${AUTOREV}"

require ${BPN}-crates.inc

SYSTEMD_SERVICE:${PN} = "tidegate.service"

USERADD_PACKAGES = "${PN}"
GROUPADD_PARAM:${PN} = "--system tidegate"
USERADD_PARAM:${PN} = "--system --home-dir /var/lib/tidegate --no-create-home --shell /sbin/nologin \
    --gid tidegate --groups dialout tidegate"

do_install:append() {
    install -D -m 0644 ${S}/systemd/tidegate.service ${D}${systemd_system_unitdir}/tidegate.service
    install -D -m 0640 ${S}/config/tidegate.toml ${D}${sysconfdir}/tidegate/tidegate.toml
    chown root:tidegate ${D}${sysconfdir}/tidegate/tidegate.toml
}

CONFFILES:${PN} = "${sysconfdir}/tidegate/tidegate.toml"
