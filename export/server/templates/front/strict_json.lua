-- JSON as the server's parser and this one understand it alike: bounded depth and size, no key twice, no escapes in keys.
-- Values of strings are not copied: a picture is only measured.

local M = {}

local MOST_VALUES = 256
local MOST_DEPTH = 6
local SHORT = 64 -- bytes of a string that are kept, for names
local MOST_ESCAPES = 131072 -- a picture in base64 of 4 MB has half as many, if its slashes are escaped

local find, byte, sub = string.find, string.byte, string.sub

-- Returns the value: {type = "object", keys = {name = value}}, {type = "array", items...}, {type = "string", text = ...},
-- {type = "number", value = ..., text = ...} or {type = "true" | "false" | "null"}; or nil and what is wrong.
function M.parse(text)
  local position, values, escapes, backslash = 1, 0, 0, 0

  local function skip()
    position = find(text, "[^ \t\r\n]", position) or #text + 1
  end

  -- Where the escape at `start` ends, or nil and what is wrong with it. Half of a pair of surrogates, as of
  -- \uD83D\uDE00, is no character.
  local function after_escape(start)
    escapes = escapes + 1
    if escapes > MOST_ESCAPES then return nil, "the JSON has more than " .. MOST_ESCAPES .. " escapes" end
    if find(text, '^["\\/bfnrt]', start + 1) then return start + 2 end
    if not find(text, "^u%x%x%x%x", start + 1) then return nil, "the JSON is malformed" end
    if not find(text, "^[dD][89a-fA-F]", start + 2) then return start + 6 end
    if find(text, "^[dD][89abAB]%x%x\\u[dD][c-fC-F]%x%x", start + 2) then return start + 12 end
    return nil, "the JSON has half of a surrogate pair"
  end

  -- The string whose opening quote is at `position`: its text if it is short, and whether it has escapes; or nil and
  -- what is wrong.
  local function read_string()
    local start = position + 1
    local from, quote, problem = start, 0, nil
    while true do
      if quote < from then quote = find(text, '"', from, true) end
      if not quote then return nil, "the JSON ends inside a string" end
      if backslash < from then backslash = find(text, "\\", from, true) or #text + 1 end
      if backslash > quote then break end
      from, problem = after_escape(backslash)
      if not from then return nil, problem end
    end
    local escaped = from > start
    position = quote + 1
    return quote - start <= SHORT and sub(text, start, quote - 1) or false, escaped
  end

  local read_value

  local function read_list(depth, list, close, read_item)
    position = position + 1
    skip()
    if byte(text, position) == close then
      position = position + 1
      return list
    end
    while true do
      local problem = read_item(list, depth)
      if problem then return nil, problem end
      skip()
      local sign = byte(text, position)
      position = position + 1
      if sign == close then return list end
      if sign ~= 0x2C then return nil, "the JSON is malformed" end
      skip()
    end
  end

  local function read_item(list, depth)
    local value, problem = read_value(depth + 1)
    list[#list + 1] = value
    return problem
  end

  local function read_member(object, depth)
    if byte(text, position) ~= 0x22 then return "the JSON is malformed" end
    local key, escaped = read_string()
    if not key or escaped then return "the JSON has a key that is long or has escapes" end
    if object.keys[key] then return "the JSON has a key twice" end
    skip()
    if byte(text, position) ~= 0x3A then return "the JSON is malformed" end
    position = position + 1
    skip()
    local value, problem = read_value(depth + 1)
    object.keys[key] = value
    return problem
  end

  function read_value(depth)
    values = values + 1
    if depth > MOST_DEPTH then return nil, "the JSON is nested more than " .. MOST_DEPTH .. " deep" end
    if values > MOST_VALUES then return nil, "the JSON has more than " .. MOST_VALUES .. " values" end
    local first = byte(text, position)
    if first == 0x7B then return read_list(depth, { type = "object", keys = {} }, 0x7D, read_member) end
    if first == 0x5B then return read_list(depth, { type = "array" }, 0x5D, read_item) end
    if first == 0x22 then
      local word, escaped = read_string()
      if word == nil then return nil, escaped end
      return { type = "string", text = not escaped and word or nil }
    end
    for _, word in ipairs { "true", "false", "null" } do
      if sub(text, position, position + #word - 1) == word then
        position = position + #word
        return { type = word }
      end
    end
    local start, stop = find(text, "^-?%d+%.?%d*[eE]?[+-]?%d*", position)
    if find(text, "^-?0%d", position) or (stop and not find(text, "^%d", stop)) then return nil, "the JSON is malformed" end
    local number = start and stop - start < 40 and tonumber(sub(text, start, stop))
    if not number then return nil, "the JSON is malformed" end
    position = stop + 1
    return { type = "number", value = number, text = sub(text, start, stop) }
  end

  skip()
  local value, problem = read_value(1)
  if problem then return nil, problem end
  skip()
  if position <= #text then return nil, "there is something behind the JSON" end
  return value
end

return M
