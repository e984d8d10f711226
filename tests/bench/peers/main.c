/* mneme-bench-peer: the servers of the peers that are ours to write. */
#include "peers.h"

#include <string.h>

int main(int argc, char **argv)
{
    if (argc > 1 && strcmp(argv[1], "tcp") == 0)
        return peer_tcp_main(argc - 2, argv + 2);
    if (argc > 1 && strcmp(argv[1], "echo") == 0)
        return peer_echo_main(argc - 2, argv + 2);
    if (argc > 1 && strcmp(argv[1], "echo-client") == 0)
        return peer_echo_client_main(argc - 2, argv + 2);
    bench_die("usage: mneme-bench-peer tcp|echo|echo-client OPTIONS (started by tests/bench/run)");
}
