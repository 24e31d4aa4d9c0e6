// Numbers that a user gives, checked.
#pragma once

#include <sstream>
#include <string>

#include "kontext/kontext.hpp"

namespace kontext {

inline std::string shown(double value) {
    std::ostringstream text;
    text << value;
    return text.str();
}

// Throws Error, which calls it `name`, unless it is above 0 and at most 1.
inline void check_share(double value, const std::string& name) {
    if (!(value > 0 && value <= 1)) throw Error(name + " must be above 0 and at most 1, not " + shown(value));
}

}  // namespace kontext
