// Unit tests of the runtime. Usage: ctx_runtime_test CASE, or without one: the names of all cases.

#include "check.h"

int main(int argc, char** argv)
{
    using namespace ctx::test;
    Cases cases;
    for (auto const& some :
        {cacheCases, capiCases, generateCases, manifestCases, samplingCases, sessionCases, slotCases})
    {
        cases.merge(some());
    }
    if (argc == 1)
    {
        for (auto const& [name, run] : cases)
        {
            std::printf("%s\n", name.c_str());
        }
        return 0;
    }
    auto const found = cases.find(argv[1]);
    if (found == cases.end())
    {
        std::fprintf(stderr, "usage: ctx_runtime_test CASE\n");
        return 2;
    }
    found->second();
    return gFailures == 0 ? 0 : 1;
}
