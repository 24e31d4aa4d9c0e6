// Typed access to untrusted JSON objects: every error names the field by its path.
#pragma once

#include <cmath>
#include <cstdint>
#include <string>

#include <nlohmann/json.hpp>

#include "kontext/kontext.hpp"

namespace kontext {

// The JSON library's error without its prefix and without the offending bytes.
inline std::string reason(const nlohmann::json::exception& error) {
    if (const auto* where = dynamic_cast<const nlohmann::json::parse_error*>(&error))
        return "syntax error at byte " + std::to_string(where->byte);
    const std::string text = error.what();
    return text.substr(text.find(' ') + 1);  // after "[json.exception.…]"
}

class Fields {
public:
    Fields(const nlohmann::json& object, std::string where) : data(object), where(std::move(where)) {}

    const nlohmann::json& data;
    const std::string where;

    Error error(const std::string& name, const std::string& what) const { return Error(where + name + " " + what); }

    const nlohmann::json& get(const std::string& name) const {
        const auto found = data.find(name);
        if (found == data.end()) throw error(name, "is missing");
        return *found;
    }

    Fields group(const std::string& name) const {
        const auto& value = get(name);
        if (!value.is_object()) throw error(name, "must be an object");
        return {value, where + name + "."};
    }

    std::string text(const std::string& name) const {
        const auto& value = get(name);
        if (!value.is_string() || value.get_ref<const std::string&>().empty())
            throw error(name, "must be a non-empty string");
        return value;
    }

    std::uint64_t whole(const std::string& name, std::uint64_t least = 1, std::uint64_t most = INT64_MAX) const {
        const auto& value = get(name);
        if (!value.is_number_unsigned() || value < least)
            throw error(name, "must be a whole number of at least " + std::to_string(least) + ", not " + shown(value));
        if (value > most) throw error(name, "is " + shown(value) + ", which is too large");
        return value;
    }

    int small(const std::string& name, int least = 1) const {
        return static_cast<int>(whole(name, static_cast<std::uint64_t>(least), INT32_MAX));
    }

    double number(const std::string& name) const {
        const auto& value = get(name);
        if (!value.is_number() || !(std::fabs(value.get<double>()) < 1e30))
            throw error(name, "must be a number, not " + shown(value));
        return value;
    }

private:
    static std::string shown(const nlohmann::json& value) {
        return value.dump(-1, ' ', true, nlohmann::json::error_handler_t::replace).substr(0, 40);
    }
};

}  // namespace kontext
