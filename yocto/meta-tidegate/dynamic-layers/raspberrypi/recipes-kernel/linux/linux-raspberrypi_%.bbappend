FILESEXTRAPATHS:prepend:rpi := "${THISDIR}/${PN}:"

# Only where TIDEGATE_RS485 asks for it: a layer that is merely added must not change a kernel.
SRC_URI:append:rpi = "${@bb.utils.contains('TIDEGATE_RS485', '1', ' file://tidegate-rs485.cfg', '', d)}"
