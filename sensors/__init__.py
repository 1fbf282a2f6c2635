"""What watches, and starts or alerts.

What belongs here: deciding what a row, a run or a figure means, in functions of what was read, and the thin sensors
around them. What does not: how an alert is kept and sent (`resources.alerts`), and what a job does.
"""

from sensors.capacity import capacity_sensor
from sensors.cleanups import cleanup_failure_sensor
from sensors.dead_runs import dead_runs_sensor
from sensors.deliveries import alert_delivery_sensor
from sensors.page_losses import page_loss_sensor
from sensors.queued_jobs import queued_jobs_sensor
from sensors.run_failures import run_failure_alerts, run_recovery_sensor
from sensors.stalled_jobs import stalled_jobs_sensor

SENSORS = (
    queued_jobs_sensor,
    stalled_jobs_sensor,
    dead_runs_sensor,
    run_failure_alerts,
    run_recovery_sensor,
    cleanup_failure_sensor,
    capacity_sensor,
    page_loss_sensor,
    alert_delivery_sensor,
)

__all__ = ["SENSORS"]
