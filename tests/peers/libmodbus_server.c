/* A Modbus server by libmodbus, on TCP or on a serial port.
 *
 *   libmodbus_server tcp PORT
 *   libmodbus_server rtu DEVICE BAUD PARITY UNIT
 *
 * Standard input sets what it holds, a line each, to an empty line: TABLE ADDRESS VALUE..., with holding, input, coil or
 * discrete. It has 1000 of each. It says `ready`, serves one connection after the other, and ends with its input. It says
 * `function N` for each request that is more than a read.
 */
#include <errno.h>
#include <modbus/modbus.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { CELLS = 1000 };

static int fill(modbus_mapping_t *map) {
    char line[4096];
    while (fgets(line, sizeof line, stdin) != NULL && line[0] != '\n') {
        char *table = strtok(line, " \n"), *word = strtok(NULL, " \n");
        if (table == NULL || word == NULL)
            return -1;
        for (long at = strtol(word, NULL, 0); (word = strtok(NULL, " \n")) != NULL; at++) {
            long value = strtol(word, NULL, 0);
            if (at < 0 || at >= CELLS)
                return -1;
            if (strcmp(table, "holding") == 0)
                map->tab_registers[at] = (uint16_t)value;
            else if (strcmp(table, "input") == 0)
                map->tab_input_registers[at] = (uint16_t)value;
            else if (strcmp(table, "coil") == 0)
                map->tab_bits[at] = value != 0;
            else if (strcmp(table, "discrete") == 0)
                map->tab_input_bits[at] = value != 0;
            else
                return -1;
        }
    }
    return 0;
}

/* Answers until the other end is gone. Returns when there is nobody any more who wants it. */
static void serve(modbus_t *ctx, modbus_mapping_t *map, int is_tcp) {
    uint8_t query[MODBUS_TCP_MAX_ADU_LENGTH];
    struct pollfd wait[2] = {{.fd = modbus_get_socket(ctx), .events = POLLIN}, {.fd = 0, .events = POLLIN}};
    for (;;) {
        if (poll(wait, 2, -1) < 0 || (wait[1].revents & (POLLIN | POLLHUP)) != 0)
            exit(0);
        int count = modbus_receive(ctx, query);
        if (count > 0) {
            int function = query[modbus_get_header_length(ctx)];
            if (function > MODBUS_FC_READ_INPUT_REGISTERS) {
                printf("function %d\n", function);
                fflush(stdout);
            }
            modbus_reply(ctx, query, count, map);
        }
        if (count < 0 && is_tcp)
            return;
    }
}

int main(int argc, char **argv) {
    int is_tcp = argc == 3 && strcmp(argv[1], "tcp") == 0;
    modbus_t *ctx = NULL;
    if (is_tcp)
        ctx = modbus_new_tcp("127.0.0.1", atoi(argv[2]));
    else if (argc == 6 && strcmp(argv[1], "rtu") == 0)
        ctx = modbus_new_rtu(argv[2], atoi(argv[3]), argv[4][0], 8, 1);
    modbus_mapping_t *map = modbus_mapping_new(CELLS, CELLS, CELLS, CELLS);
    if (ctx == NULL || map == NULL || fill(map) != 0) {
        fprintf(stderr, "libmodbus_server: wrong arguments or input\n");
        return 64;
    }
    int listening = -1;
    if (is_tcp)
        listening = modbus_tcp_listen(ctx, 8);
    else if (modbus_set_slave(ctx, atoi(argv[5])) != 0 || modbus_connect(ctx) != 0)
        listening = -1;
    else
        listening = 0;
    if (listening < 0) {
        fprintf(stderr, "libmodbus_server: %s\n", modbus_strerror(errno));
        return 70;
    }
    printf("ready\n");
    fflush(stdout);
    if (!is_tcp)
        serve(ctx, map, 0);
    for (;;) {
        struct pollfd wait[2] = {{.fd = listening, .events = POLLIN}, {.fd = 0, .events = POLLIN}};
        if (poll(wait, 2, -1) < 0 || (wait[1].revents & (POLLIN | POLLHUP)) != 0)
            return 0;
        if (modbus_tcp_accept(ctx, &listening) >= 0) {
            serve(ctx, map, 1);
            close(modbus_get_socket(ctx));
        }
    }
}
