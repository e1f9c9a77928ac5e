/* Asks a Modbus TCP server as fast as libmodbus can: libmodbus_client PORT REGISTERS SECONDS
 * Prints how many answers it had and the processor time in seconds that they took.
 */
#include <errno.h>
#include <modbus/modbus.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

static double seconds(clockid_t clock) {
    struct timespec now;
    clock_gettime(clock, &now);
    return (double)now.tv_sec + (double)now.tv_nsec / 1e9;
}

int main(int argc, char **argv) {
    if (argc != 4)
        return 64;
    uint16_t words[125];
    int registers = atoi(argv[2]);
    modbus_t *ctx = modbus_new_tcp("127.0.0.1", atoi(argv[1]));
    if (ctx == NULL || modbus_set_slave(ctx, 1) != 0 || modbus_connect(ctx) != 0) {
        fprintf(stderr, "libmodbus_client: %s\n", modbus_strerror(errno));
        return 70;
    }
    long count = 0;
    double cpu = seconds(CLOCK_PROCESS_CPUTIME_ID), began = seconds(CLOCK_MONOTONIC);
    double end = began + atof(argv[3]), now = began;
    for (; now < end; now = seconds(CLOCK_MONOTONIC)) {
        if (modbus_read_registers(ctx, 0, registers, words) != registers) {
            fprintf(stderr, "libmodbus_client: %s\n", modbus_strerror(errno));
            return 70;
        }
        count++;
    }
    printf("%ld %.6f %.6f\n", count, now - began, seconds(CLOCK_PROCESS_CPUTIME_ID) - cpu);
    modbus_close(ctx);
    modbus_free(ctx);
    return 0;
}
