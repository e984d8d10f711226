/* A build without CUDA says which build a device takes. */
#include "harness.h"
#include "mneme.h"

#include <string.h>

static void a_device_takes_another_build(void **state)
{
    const mn_client_options options = {.target = "local:", .device = 3};
    mn_client *client = NULL;
    mn_error error;
    (void)state;
    assert_int_equal(mn_client_open(&options, &client, &error), MN_UNSUPPORTED);
    assert_string_equal(error.field, "device");
    assert_non_null(strstr(error.message, "CUDA device 2"));
    assert_non_null(strstr(error.message, "MN_CUDA=ON"));
    assert_null(client);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(a_device_takes_another_build)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
