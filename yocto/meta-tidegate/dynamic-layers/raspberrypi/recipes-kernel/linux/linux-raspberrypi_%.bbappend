FILESEXTRAPATHS:prepend:rpi := "${THISDIR}/${PN}:"

# Only where it is asked for, by TIDEGATE_RS485 and by RAUC's own feature: a layer that is merely added must not change a
# kernel.
SRC_URI:append:rpi = " ${@bb.utils.contains('TIDEGATE_RS485', '1', 'file://tidegate-rs485.cfg', '', d)}"
SRC_URI:append:rpi = " ${@bb.utils.contains('DISTRO_FEATURES', 'rauc', 'file://tidegate-rauc.cfg', '', d)}"
