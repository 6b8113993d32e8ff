"""The agent run: guardrail, prompt, models, tools, and the loop that ties them. Pure: knows no HTTP and no SQL."""
