"""A history behind the service's back, of any age."""

ERROR = '{"code": "model_error", "message": "m"}'
INSERT = (
    "insert into runs (tenant_id, agent_id, agent_name, model, status, prompt_tokens, completion_tokens, created_at, "
    "duration_ms, task, response, error, steps, prompt) values (?, ?, ?, ?, ?, ?, ?, ?, ?, 't', ?, ?, '[]', 'p')"
)


def row(number: int, day: str, model: str, agent_id: int, failed: bool, tenant: str = "tenant_a") -> tuple[object, ...]:
    """The parameters of INSERT for the run with this number, below 10, of this day; its sums follow from the number."""
    sums = (10 + number, number, f"{day}T10:00:0{number}.000000Z", 100 + number)
    ended = ("failed", *sums, None, ERROR) if failed else ("completed", *sums, "r", None)
    return (tenant, agent_id, f"agent as of {day}", model, *ended)
