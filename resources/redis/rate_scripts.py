"""The limiter's rules as Redis runs them: each is one atomic step, by Redis's own clock.

In `rate:{domain}`, a hash, stand the requests of the last minute by second, and: `next`, the moment before which
nothing is sent; `raised`, that of the last raise of the delay; `since`, in which this counter began; the strictest
`limit` and `spacing` that anybody has asked for within the last minute, with the moments until which they count.
"""

from __future__ import annotations

from typing import Final

from resources.redis.commands import Script

SERVER_CLOCK: Final = """
local t = redis.call('TIME')
local now = tonumber(t[1]) + tonumber(t[2]) / 1000000
"""

# Asked by one who was counted lately in another counter, or oftener than this one knows, both scripts say -1.
_STATE: Final = """
local limit, spacing, own, known = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3]), ARGV[4]
local delay = tonumber(redis.call('GET', KEYS[2]) or '0') or 0
local flat = redis.call('HGETALL', KEYS[1])
local used, oldest, since, gone, kept = 0, nil, '', {}, {}
for i = 1, #flat, 2 do
    local field, value = flat[i], tonumber(flat[i + 1])
    local second = tonumber(field)
    if second then
        -- What is far in the future was counted by a clock that has been put back since.
        if second <= now - 61 or second > now + 61 then
            gone[#gone + 1] = field
        else
            used = used + value
            if not oldest or second < oldest then oldest = second end
        end
    elseif field == 'since' then
        since = flat[i + 1]
    else
        kept[field] = value
    end
end
local function answer(permitted, wait)
    return {permitted, string.format('%.6f', wait), used, string.format('%.6f', delay), since, limit,
            string.format('%.6f', spacing)}
end
if own > 0 and (since ~= known or used < own) then return answer(-1, 0) end
if #gone > 0 then redis.call('HDEL', KEYS[1], unpack(gone)) end
local function counts(name)
    local till = kept[name .. '_until'] or 0
    return kept[name] and now < till and till <= now + 61
end
local function ask_for(name, value)
    redis.call('HSET', KEYS[1], name, value, name .. '_until', string.format('%.6f', now + 60))
    redis.call('PEXPIRE', KEYS[1], 60000)
end
if counts('limit') and (limit == 0 or kept.limit < limit) then
    limit = kept.limit
elseif limit > 0 then
    ask_for('limit', limit)
end
if counts('spacing') and kept.spacing > spacing then
    spacing = kept.spacing
elseif spacing > 0 then
    ask_for('spacing', string.format('%.6f', spacing))
end
local gap = math.max(spacing, delay)
local next_at = math.min(kept.next or 0, now + math.max(gap, 60))
local function count(requests)
    redis.call('HINCRBY', KEYS[1], math.floor(now), requests)
    if since == '' then
        since = string.format('%.6f', now)
        redis.call('HSET', KEYS[1], 'since', since)
    end
    redis.call('PEXPIRE', KEYS[1], 60000)
    used = used + requests
end
"""

ACQUIRE_BODY: Final = (
    _STATE
    + """
if now < next_at then return answer(0, next_at - now) end
if limit > 0 and used >= limit then return answer(0, math.max(0.001, oldest + 61 - now)) end
redis.call('HSET', KEYS[1], 'next', string.format('%.6f', now + gap))
count(1)
return answer(1, 0)
"""
)

# The fifth argument: requests that were sent since it was last looked.
LOOK_BODY: Final = (
    _STATE
    + """
local sent = tonumber(ARGV[5])
if sent > 0 then count(sent) end
return answer(1, math.max(0, next_at - now))
"""
)

RAISE_BODY: Final = """
local at_least, pause = tonumber(ARGV[1]), tonumber(ARGV[2])
local delay = tonumber(redis.call('GET', KEYS[2]) or '0') or 0
local raised = tonumber(redis.call('HGET', KEYS[1], 'raised') or '-1000')
-- The answers to requests that were under way together are one reason, not many.
if now - raised >= math.max(delay, 1) or now < raised then
    delay = math.max(delay * 2, tonumber(ARGV[3]))
    redis.call('HSET', KEYS[1], 'raised', string.format('%.6f', now))
end
delay = math.min(math.max(delay, at_least), tonumber(ARGV[4]))
local wait = math.min(math.max(delay, pause), tonumber(ARGV[4]))
local next_at = tonumber(redis.call('HGET', KEYS[1], 'next') or '0')
redis.call('HSET', KEYS[1], 'next', string.format('%.6f', math.max(next_at, now + wait)))
redis.call('PEXPIRE', KEYS[1], 60000)
redis.call('SET', KEYS[2], string.format('%.6f', delay), 'EX', 300)
return string.format('%.6f', delay)
"""

SLOW_DOWN_BODY: Final = """
local delay = tonumber(redis.call('GET', KEYS[2]) or '0') or 0
delay = math.max(delay, math.min(tonumber(ARGV[1]), tonumber(ARGV[2])))
redis.call('SET', KEYS[2], string.format('%.6f', delay), 'EX', 300)
return string.format('%.6f', delay)
"""

LOWER_BODY: Final = """
local delay = tonumber(redis.call('GET', KEYS[2]) or '0') or 0
if delay == 0 then return '0' end
delay = delay * tonumber(ARGV[1])
if delay < tonumber(ARGV[2]) then
    redis.call('DEL', KEYS[2])
    return '0'
end
redis.call('SET', KEYS[2], string.format('%.6f', delay), 'EX', 300)
return string.format('%.6f', delay)
"""

ACQUIRE: Final = Script(SERVER_CLOCK + ACQUIRE_BODY)
LOOK: Final = Script(SERVER_CLOCK + LOOK_BODY)
RAISE: Final = Script(SERVER_CLOCK + RAISE_BODY)
SLOW_DOWN: Final = Script(SLOW_DOWN_BODY)
LOWER: Final = Script(LOWER_BODY)
