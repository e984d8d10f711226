/* mneme-bench: runs the benches named, or all. Started by tests/bench/run. */
#include "bench.h"

#include <string.h>

static const struct {
    const char *name;
    void (*run)(void);
} benches[] = {{"fetch", bench_fetch},
               {"push", bench_push},
               {"bag", bench_bag},
               {"bag-grad", bench_bag_grad},
               {"bag-latency", bench_bag_latency},
               {"layer-step", bench_layer_step},
               {"scale", bench_scale},
               {"frozen", bench_frozen},
               {"search", bench_search},
               {"kernel-bag", bench_kernel_bag},
               {"kernel-bag-grad", bench_kernel_bag_grad},
               {"adamw", bench_adamw},
               {"durable-push", bench_durable_push},
               {"durable-bag-grad", bench_durable_bag_grad},
               {"snapshot", bench_snapshot},
               {"recovery", bench_recovery},
               {"move", bench_move}};

enum { BENCHES = sizeof benches / sizeof *benches };

int main(int argc, char **argv)
{
    uint32_t named = 0, known = 0;
    for (int i = 1; i < argc; i++) {
        if (strcmp(argv[i], "--quick") == 0)
            bench_quick = true;
        else
            named++;
    }
    for (uint32_t bench = 0; bench < BENCHES; bench++) {
        bool asked = named == 0;
        for (int i = 1; i < argc; i++)
            asked |= strcmp(argv[i], benches[bench].name) == 0;
        known += asked && named;
        if (asked)
            benches[bench].run();
    }
    if (known < named)
        bench_die("no such bench; there are fetch push bag bag-grad bag-latency layer-step scale "
                  "frozen search kernel-bag kernel-bag-grad adamw durable-push durable-bag-grad "
                  "snapshot recovery move");
    return 0;
}
