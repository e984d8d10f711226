/* Output of the operator's command: rows for people, objects for programs, failures. */
#include "cli.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

void cli_json_text(const char *value)
{
    (void)putchar('"');
    for (const unsigned char *c = (const unsigned char *)value; *c; c++) {
        if (*c == '"' || *c == '\\')
            (void)printf("\\%c", *c);
        else if (*c < 0x20)
            (void)printf("\\u%04x", *c);
        else
            (void)putchar(*c);
    }
    (void)putchar('"');
}

void cli_json_float(float value)
{
    if (isfinite(value))
        (void)printf("%.9g", (double)value);
    else
        (void)printf("null");
}

void cli_line_begin(cli_line *line, bool json, bool first)
{
    memset(line, 0, sizeof *line);
    line->json = json;
    line->first = first;
    if (json)
        (void)putchar('{');
}

static void name(cli_line *line, const char *field)
{
    if (line->fields++)
        (void)putchar(',');
    (void)printf("\"%s\":", field);
}

/* Texts are aligned left, numbers right. */
static void column(cli_line *line, const char *field, int width, const char *value, bool right)
{
    size_t heading = strlen(line->heading), row = strlen(line->row);
    int side = right ? width : -width;
    (void)snprintf(line->heading + heading, sizeof line->heading - heading, "%*s  ", side, field);
    (void)snprintf(line->row + row, sizeof line->row - row, "%*s  ", side, value);
}

void cli_text(cli_line *line, const char *field, int width, const char *value)
{
    if (!line->json) {
        column(line, field, width, value, false);
        return;
    }
    name(line, field);
    cli_json_text(value);
}

void cli_number(cli_line *line, const char *field, int width, uint64_t value)
{
    char text[24];
    (void)snprintf(text, sizeof text, "%" PRIu64, value);
    if (!line->json) {
        column(line, field, width, text, true);
        return;
    }
    name(line, field);
    (void)fputs(text, stdout);
}

void cli_amount(uint64_t bytes, char out_text[32])
{
    static const char *const units[] = {"B", "KiB", "MiB", "GiB", "TiB", "PiB"};
    double value = (double)bytes;
    size_t unit = 0;
    for (; value >= 1024 && unit < 5; unit++)
        value /= 1024;
    (void)snprintf(out_text, 32, unit ? "%.1f %s" : "%.0f %s", value, units[unit]);
}

unsigned cli_percent(uint64_t done, uint64_t due)
{
    return done < due ? (unsigned)((double)done / (double)due * 100) : 100;
}

void cli_bar(unsigned percent, char out_bar[CLI_BAR_BYTES])
{
    enum { COLUMNS = CLI_BAR_BYTES - 3 };
    const unsigned full = percent * COLUMNS / 100;
    out_bar[0] = '[';
    for (unsigned column = 0; column < COLUMNS; column++)
        out_bar[1 + column] = column < full ? '#' : '.';
    out_bar[COLUMNS + 1] = ']';
    out_bar[COLUMNS + 2] = 0;
}

void cli_bytes(cli_line *line, const char *field, int width, uint64_t bytes)
{
    char text[32];
    if (line->json) {
        cli_number(line, field, width, bytes);
        return;
    }
    cli_amount(bytes, text);
    column(line, field, width, text, true);
}

static void put_trimmed(char *text)
{
    size_t length = strlen(text);
    while (length && text[length - 1] == ' ')
        text[--length] = 0;
    (void)puts(text);
}

void cli_line_end(cli_line *line)
{
    if (line->json) {
        (void)puts("}");
        return;
    }
    if (line->first)
        put_trimmed(line->heading);
    put_trimmed(line->row);
}

int cli_complain(const cli_flags *flags, const mn_error *error)
{
    const char *retry = mn_status_retryable(error->status) ? "true" : "false";
    if (!flags->json) {
        (void)fprintf(stderr, "mneme: %s: %s: %s%s\n", mn_status_name(error->status), error->field,
                      error->message,
                      mn_status_retryable(error->status) ? " (a retry may help)" : "");
        return CLI_FAILED;
    }
    (void)printf("{\"error\":\"%s\",\"retryable\":%s,\"field\":", mn_status_name(error->status),
                 retry);
    cli_json_text(error->field);
    (void)printf(",\"message\":");
    cli_json_text(error->message);
    (void)puts("}");
    return CLI_FAILED;
}
