// Files of a package, read whole or in parts.
#pragma once

#include <cstdint>
#include <functional>
#include <string>

namespace ctx::runtime
{

enum class FileKind
{
    kNONE,
    kREGULAR,
    kOTHER
};

FileKind fileKind(std::string const& path);

// Size of a regular file.
int64_t fileBytes(std::string const& path);

std::string pathIn(std::string const& directory, std::string const& name);

// Whether `name` is a file's own name, without a directory.
bool isPlainName(std::string const& name);

// Bytes of a regular file, of which there may be `most`. Both throw Failure{kINVALID_PACKAGE} with the system's reason.
std::string fileContents(std::string const& path, int64_t most);

void readParts(std::string const& path, std::function<void(char const*, size_t)> const& take);

} // namespace ctx::runtime
