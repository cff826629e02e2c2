// SHA-256 (FIPS 180-4).
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <string>

namespace ctx::runtime
{

class Sha256
{
public:
    void add(void const* bytes, size_t count) noexcept;

    // The digest in hexadecimal; ends the use of the object.
    std::string finish();

private:
    void takeBlock(uint8_t const* block) noexcept;

    std::array<uint32_t, 8> mHash{
        0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a, 0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19};
    std::array<uint8_t, 64> mBlock{};
    uint64_t mCount{0}; // bytes so far
};

} // namespace ctx::runtime
